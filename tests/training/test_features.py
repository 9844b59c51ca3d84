"""Runs that train the head alone on features of the decoder, which are computed once and kept on disk."""

import dataclasses
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.data.packing.features import FeatureStore
from rmjax.data.records import synthetic
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.models import loading
from rmjax.models.workdir import Workdir
from rmjax.training import features
from rmjax.training.experiment import train
from rmjax.training.export import export
from tests.training.conftest import tiny as tiny_config
from tests.training.test_experiment import command, lines, losses


def head_only(**options):
    config = tiny_config.__wrapped__()
    config.optimizer.learning_rate = 1e-2
    config.data.synthetic_train = 96  # six steps of 16
    config.train.update(trainable="head", **options)
    return config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run on features (`run`) with its cache directory (`cache`), and one that computes the model (`whole`)."""
    path = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMJAX_CACHE", str(path / "cache"))
        train(head_only(), path / "run")
        train(head_only(cache_features=False), path / "whole")
    return path


@pytest.fixture
def cached(made, tmp_path, monkeypatch):
    """A copy of the cache directory of `made`, in use."""
    shutil.copytree(made / "cache", tmp_path / "copy")
    monkeypatch.setenv("RMJAX_CACHE", str(tmp_path / "copy"))
    return tmp_path / "copy" / "features"


@pytest.fixture
def no_computation(monkeypatch):
    """Computing features is an error."""
    monkeypatch.setattr(features._Computer, "_fill", lambda *_: pytest.fail("features were computed"))


def test_metrics_equal_those_of_the_whole_model(made):
    for split in ("train", "validation"):
        found, expected = lines(made / "run", split), lines(made / "whole", split)
        assert [line.keys() for line in found] == [line.keys() for line in expected]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(
                [one[name] for name in one if isinstance(one[name], float)],
                [other[name] for name in one if isinstance(one[name], float)],
                atol=1e-5,
            )
    assert len(set(losses(made / "run"))) == 6  # the head changes


def test_another_learning_rate_and_other_seeds_reuse_the_features(made, cached, no_computation, tmp_path):
    messages = []
    config = head_only()
    config.optimizer.learning_rate = 1e-3
    train(config, tmp_path / "slow", log=messages.append)
    assert sum("are reused from" in message for message in messages) == 2
    assert losses(tmp_path / "slow") != losses(made / "run")
    config = head_only(seed=1)  # of the order of the data
    config.model.path = str(made / "run")
    train(config, tmp_path / "seed")


@pytest.mark.parametrize(
    ("section", "key", "value"), [("objective", "name", "process"), ("model", "dtype", "bfloat16")]
)
def test_other_data_and_another_dtype_have_other_features(cached, tmp_path, section, key, value):
    config, messages = head_only(), []
    config[section][key] = value
    config.data.synthetic_format = "process" if value == "process" else "pairs"  # several readouts a response
    train(config, tmp_path / "run", log=messages.append)
    assert sum("computing the features" in message for message in messages) == 2
    config.train.cache_features = False
    train(config, tmp_path / "whole")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "whole"), atol=1e-5)


def test_the_store_depends_on_parameters_model_and_data(tmp_path):
    model = loading.make_model(head_only().model, 260)
    dataset = TokenizedDataset.build([], [], ())
    params = {"decoder": {"norm": {"scale": jnp.ones(4)}}}
    path = lambda model, params, dataset: features._Computer(model, params, None, None, False)._path(dataset)
    change = dataclasses.replace
    paths = [
        path(model, params, dataset),
        path(model, {"decoder": {"norm": {"scale": jnp.full(4, 2.0)}}}, dataset),
        path(change(model, decoder=change(model.decoder, rope_theta=500.0)), params, dataset),
        path(change(model, dtype="bfloat16"), params, dataset),
        path(model, params, change(dataset, tokens=np.ones(3, np.int32))),
        path(model, params, change(dataset, readouts=np.ones((1, 2), np.int32))),
    ]
    assert len(set(paths)) == len(paths)
    assert path(change(model, attention="blocks", remat="none"), params, dataset) == paths[0]
    assert path(model, params, change(dataset, labels=np.ones((1, 1), np.float32))) == paths[0]


def test_an_interrupted_run_resumes_bit_for_bit(made, cached, no_computation, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    assert train(head_only(), tmp_path / "run").step == 6
    assert lines(tmp_path / "run") == lines(made / "run")
    # The key may change.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    train(head_only(cache_features=False), tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(made / "run"), atol=1e-6)


def test_a_killed_computation_is_continued(tmp_path, monkeypatch):
    write, written = FeatureStore.write, []

    def write_once(self, comparisons, *rest):
        if written:
            raise KeyboardInterrupt
        written.append(len(comparisons))
        write(self, comparisons, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureStore, "write", write_once)
        with pytest.raises(KeyboardInterrupt):
            train(head_only(steps=5), tmp_path / "run")
    assert written == [64]
    messages = []
    train(head_only(steps=5), tmp_path / "run", log=messages.append)
    assert any("computing the features of 16 comparisons" in message for message in messages)  # of 80 in the plan
    train(head_only(steps=5, cache_features=False), tmp_path / "whole")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "whole"), atol=1e-5)


def test_a_stop_ends_the_computation(tmp_path):
    config = head_only(steps=250)
    config.data.synthetic_train = 4000
    process = command(config, tmp_path / "run", tmp_path)
    for line in process.stdout:
        if b"computing the features" in line:
            break
    process.send_signal(signal.SIGTERM)
    assert b"stopped by SIGTERM" in process.communicate(timeout=60)[0]
    assert process.returncode == 143


def damage(path, how):
    if how == "removed":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["removed", "flipped"])
def test_damaged_features_are_named(made, cached, tmp_path, how):
    for path in cached.glob("*/c/0/0"):
        damage(path, how)
    with pytest.raises(InputError, match=r"features in .*copy/features/.* cannot be used .*remove this directory"):
        train(head_only(), tmp_path / "run")


def test_features_without_usable_metadata_are_computed_again(made, cached, tmp_path):
    for path in cached.glob("*/zarr.json"):
        path.write_text("{")
    for path in cached.glob("*/c/0/0"):
        damage(path, "flipped")
    train(head_only(), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(made / "run")


def test_a_cache_that_cannot_be_written_is_reported(made, tmp_path, monkeypatch):
    monkeypatch.setenv("RMJAX_CACHE", "/dev/null/cache")
    messages = []
    train(head_only(), tmp_path / "run", log=messages.append)
    assert any(message.startswith("warning: features cannot be kept") for message in messages)
    assert losses(tmp_path / "run") == losses(made / "whole")


def test_losses_on_a_mesh_equal_those_on_one_device(made, tmp_path):
    config = head_only()
    config.mesh.update(data=1, fsdp=2, tensor=2, sequence=2)
    train(config, tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(made / "run"), atol=1e-5)


def test_the_workdir_is_that_of_any_run(made, tmp_path):
    names = lambda path: {file.relative_to(path).parts[0] for file in path.rglob("*")}
    assert names(made / "run") == names(made / "whole")
    frozen = lambda path: json.loads((path / "frozen.json").read_text())
    assert frozen(made / "run") == frozen(made / "whole")
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        one, other = (loading.load_model(str(made / name), mesh=mesh).params for name in ("run", "whole"))
    np.testing.assert_array_equal(one["decoder"]["embedding"]["weight"], other["decoder"]["embedding"]["weight"])
    np.testing.assert_allclose(one["head"]["kernel"], other["head"]["kernel"], atol=1e-6)
    export(made / "run", tmp_path / "artifact")
    pipeline = load_pipeline(str(tmp_path / "artifact"))
    records = [item.record for item in synthetic.comparisons("validation", 40)]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = evaluate(pipeline, read_evaluation_data([tmp_path / "records.jsonl"], pipeline.options)).metrics
    workdir = Workdir(made / "run")
    expected = workdir.validation_metrics(workdir.best_step())
    for name in ("reward_mean", "reward_std", "margin"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6)
