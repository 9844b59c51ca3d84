"""Runs whose matrices that are not trained are int8."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rmjax.core import pytree
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.data.records import synthetic
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.models import int8, loading
from rmjax.training.experiment import train
from rmjax.training.export import export
from tests.training.conftest import tiny as tiny_config
from tests.training.test_experiment import lines, losses
from tests.training.test_lora import rewards, saved_paths


def frozen(path, **options):
    config = tiny_config.__wrapped__()
    config.model.path, config.model.frozen_dtype = str(path / "base"), "int8"
    config.optimizer.learning_rate = 1e-2
    for name, value in options.items():
        section, _, key = name.partition("_")
        config[section][key] = value
    return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A Hugging Face directory without a head (`base`), and runs on it: of adapters (`lora`) and the head (`head`)."""
    path = tmp_path_factory.mktemp("made")
    config = tiny_config.__wrapped__()
    config.train.steps = 1
    train(config, path / "first")
    export(path / "first", path / "base")
    (path / "base" / "rmjax.json").unlink()
    tensors = load_file(path / "base" / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "score.weight"}, path / "base" / "model.safetensors")
    train(frozen(path, lora_rank=4), path / "lora")
    train(frozen(path, train_trainable="head"), path / "head")
    return path


def load(path):
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        return pytree.flatten(loading.load_model(str(path), mesh=mesh).params)


def test_nothing_is_stored_for_int8_matrices(made):
    paths = saved_paths(made / "lora")
    assert not any(map(int8.is_part, paths))
    assert {path.rpartition("/")[2] for path in paths} == {"step", "count", "lora_a", "lora_b", "kernel"}


def test_a_loaded_workdir_has_the_dequantized_matrices(made):
    base = load_file(made / "base" / "model.safetensors")["model.layers.1.mlp.up_proj.weight"].T
    scale = abs(base).max(axis=0) / 127
    found = load(made / "head")["decoder/layers/mlp/up/kernel"][1]
    np.testing.assert_allclose(found, np.round(base / scale) * scale, rtol=1e-5)
    assert (found != base).any()


@pytest.mark.parametrize("name", ["lora", "head"])
def test_the_loss_is_that_of_the_loaded_model(made, tmp_path, name):
    start, *_, end = lines(made / name, "validation")
    assert end["loss"] != start["loss"]
    export(made / name, tmp_path / "artifact")
    np.testing.assert_array_equal(rewards(tmp_path / "artifact"), rewards(made / name))
    config = frozen(tmp_path, model_frozen_dtype="", model_path=str(tmp_path / "artifact"), optimizer_learning_rate=0.0)
    config.train.steps = 1
    train(config, tmp_path / "again")
    metrics = max(lines(made / name, "validation"), key=lambda line: (line["accuracy"], -line["step"]))
    found = lines(tmp_path / "again", "validation")[0]
    for key in ("loss", "margin", "reward_mean"):
        assert found[key] == pytest.approx(metrics[key], rel=1e-3, abs=1e-6)


def test_an_interrupted_run_resumes_bit_for_bit(made, tmp_path):
    shutil.copytree(made / "lora", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    assert train(frozen(made, lora_rank=4), tmp_path / "run").step == 6
    assert lines(tmp_path / "run") == lines(made / "lora")


def test_losses_on_a_mesh_equal_those_on_one_device(made, tmp_path):
    config = frozen(made, lora_rank=4)
    config.mesh.update(data=1, fsdp=2, tensor=2, sequence=2)
    train(config, tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(made / "lora"), atol=1e-5)


def test_features_are_those_of_the_int8_model(made, tmp_path):
    config = frozen(made, train_trainable="head", train_cache_features=False)
    train(config, tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(made / "head"), atol=1e-5)
    config.model.frozen_dtype = ""
    train(config, tmp_path / "float32")
    assert losses(tmp_path / "float32") != losses(tmp_path / "run")


def test_models_are_scored_with_int8_matrices(made):
    plain, quantized = (load_pipeline(str(made / "lora"), int8=int8) for int8 in (False, True))
    leaves = pytree.flatten(quantized.scorer.params)
    assert leaves["decoder/layers/mlp/up/kernel/int8"].dtype == np.int8
    items = list(synthetic.comparisons("validation", 20))
    found, expected = (np.concatenate(pipeline.rewards(items)) for pipeline in (quantized, plain))
    assert (found != expected).any()
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_adapters_are_exported_for_peft(made, tmp_path):
    export(made / "lora", tmp_path / "adapter", peft=True)
    assert "base_model.model.score.weight" in load_file(tmp_path / "adapter" / "adapter_model.safetensors")


def test_int8_needs_matrices_that_are_not_trained(made, tmp_path):
    with pytest.raises(InputError, match=r"frozen_dtype is 'int8' and config.train.trainable is '', which trains all"):
        train(frozen(made), tmp_path / "run")
