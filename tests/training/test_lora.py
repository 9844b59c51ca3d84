"""Runs that train a part of the parameters: adapters, the head, or those that a regex names."""

import dataclasses
import json
import re
import shutil

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from rmjax.core import pytree
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.data.records import synthetic
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.models import continued, loading, lora
from rmjax.models.workdir import Workdir
from rmjax.training.experiment import train
from rmjax.training.export import export
from tests.training.conftest import tiny as tiny_config
from tests.training.test_experiment import lines, losses


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A Hugging Face directory without a head (`base`), a run of adapters on it (`run`), and its configuration."""
    path = tmp_path_factory.mktemp("made")
    config = tiny_config.__wrapped__()
    config.optimizer.learning_rate = 1e-2
    train(config, path / "first")
    export(path / "first", path / "base")
    (path / "base" / "rmjax.json").unlink()
    tensors = load_file(path / "base" / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "score.weight"}, path / "base" / "model.safetensors")
    train(adapters(path), path / "run")
    return path


def adapters(path):
    config = tiny_config.__wrapped__()
    config.model.path, config.model.param_dtype = str(path / "base"), "bfloat16"
    config.lora.rank, config.optimizer.learning_rate = 4, 1e-2
    return config


def restored(workdir):
    """Returns all parameters of the best checkpoint, with adapters."""
    workdir, mesh = Workdir(workdir), make_mesh(devices=jax.devices()[:1])
    config = workdir.config()
    with jax.set_mesh(mesh):
        model = loading.make_model(config.model, 260)
        model = dataclasses.replace(model, lora=lora.LoraConfig.from_config(config.lora))
        return jax.device_get(pytree.flatten(loading.restore(workdir, model, mesh)))


def saved_paths(workdir):
    """Returns the paths of the arrays in a checkpoint's state."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.metadata((workdir / "checkpoints" / "6" / "state").absolute()).item_metadata.tree
    return set(pytree.flatten(tree))


def test_only_adapters_and_head_have_gradients_moments_and_checkpoints(made):
    paths = saved_paths(made / "run")
    names = {path.rpartition("/")[2] for path in paths}
    assert names == {"step", "count", "lora_a", "lora_b", "kernel"}
    assert {path for path in paths if path.endswith("kernel")} == {
        *("params/head/kernel", "opt_state/0/mu/head/kernel", "opt_state/0/nu/head/kernel")
    }
    params, tensors = restored(made / "run"), load_file(made / "base" / "model.safetensors")
    embedding = params["decoder/embedding/weight"]
    assert embedding.dtype == jax.numpy.bfloat16
    np.testing.assert_array_equal(embedding, tensors["model.embed_tokens.weight"].astype(embedding.dtype))
    assert all(leaf.dtype == np.float32 and leaf.any() for path, leaf in params.items() if "lora" in path)


def test_the_loss_falls(made):
    start, *_, end = lines(made / "run", "validation")
    assert start["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert end["loss"] < 0.69


def test_an_interrupted_run_resumes_bit_for_bit(made, tmp_path):
    shutil.copytree(made / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    assert train(adapters(made), tmp_path / "run").step == 6
    assert lines(tmp_path / "run") == lines(made / "run")
    chex.assert_trees_all_equal(restored(tmp_path / "run"), restored(made / "run"))


@pytest.mark.parametrize("mesh", [(1, 2, 2, 2)])
def test_losses_on_a_mesh_equal_those_on_one_device(made, tmp_path, mesh):
    config = adapters(made)
    config.mesh.update(dict(zip(("data", "fsdp", "tensor", "sequence"), mesh, strict=True)))
    train(config, tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(made / "run"), atol=1e-5)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    config.mesh.update(data=1, fsdp=1, tensor=1, sequence=1)
    assert train(config, tmp_path / "run").step == 6  # the checksum does not depend on the mesh
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(made / "run"), atol=1e-5)


def test_a_base_model_that_has_changed_or_moved_is_named(made, tmp_path):
    shutil.copytree(made / "base", tmp_path / "base")
    config = adapters(tmp_path)
    train(config, tmp_path / "run")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors["model.norm.weight"][3] += 0.125
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    message = r"run: the parameters that were not trained are those of .*base, which have changed since the run began"
    with pytest.raises(InputError, match=message):
        train(config, tmp_path / "run")
    with pytest.raises(InputError, match=message):
        load_pipeline(str(tmp_path / "run"))
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(
        InputError, match=r"run: the parameters that were not trained cannot be read: .*no such directory"
    ):
        load_pipeline(str(tmp_path / "run"))


def test_a_run_can_be_read_from_another_directory(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    config = adapters(made)
    config.model.path = "base"
    train(config, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert load_pipeline(str(tmp_path / "run")).attributes == ("reward",)


def rewards(path, **options):
    return np.concatenate(load_pipeline(str(path), **options).rewards(list(synthetic.comparisons("validation", 40))))


def test_the_merged_artifact_has_the_rewards_of_the_run(made, tmp_path):
    config = adapters(made)
    config.model.param_dtype = "float32"
    config.lora.rslora = True
    train(config, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "artifact")
    np.testing.assert_array_equal(rewards(tmp_path / "artifact"), rewards(tmp_path / "run"))
    pipeline = load_pipeline(str(tmp_path / "artifact"))
    records = [item.record for item in synthetic.comparisons("validation", 40)]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    items = read_evaluation_data([tmp_path / "records.jsonl"], pipeline.options)
    found, step = evaluate(pipeline, items).metrics, Workdir(tmp_path / "run").best_step()
    expected = next(line for line in lines(tmp_path / "run", "validation") if line["step"] == step)
    for name in ("reward_mean", "reward_std", "margin"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6)


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    """A float32 run with rsLoRA on some matrices (`run`), and its adapter for PEFT (`adapter`)."""
    path = tmp_path_factory.mktemp("exported")
    config = adapters(made)
    config.model.param_dtype, config.lora.rslora, config.lora.targets = "float32", True, "attention/(query|value)|down"
    train(config, path / "run")
    export(path / "run", path / "adapter", peft=True)
    return path


def test_an_adapter_directory_is_a_model(made, exported, tmp_path):
    values = json.loads((exported / "adapter" / "adapter_config.json").read_text())
    assert values["target_modules"] == ["mlp.down_proj", "self_attn.q_proj", "self_attn.v_proj"]
    assert (values["base_model_name_or_path"], values["use_rslora"]) == (str(made / "base"), True)
    assert values["task_type"] == "SEQ_CLS"
    np.testing.assert_allclose(rewards(exported / "adapter"), rewards(exported / "run"), atol=1e-6)
    config, output = adapters(made), []  # adds new adapters to the sum
    config.model.path, config.model.param_dtype, config.train.steps = str(exported / "adapter"), "float32", 1
    train(config, tmp_path / "more", log=output.append)
    assert any("are added to its matrices, and new ones begin, since their scale is 16" in line for line in output)
    started = lines(tmp_path / "more", "validation")[0]
    assert started["reward_mean"] == pytest.approx(float(rewards(exported / "run").mean()), abs=1e-5)
    with pytest.raises(
        InputError, match=r"--peft: the base model .*adapter is a workdir or an adapter, and PEFT needs"
    ):
        export(tmp_path / "more", tmp_path / "output", peft=True)


def test_the_base_model_of_an_adapter_may_move_but_not_change(made, exported, tmp_path):
    shutil.copytree(exported / "adapter", tmp_path / "adapter")
    shutil.copytree(made / "base", tmp_path / "base")
    file, weights = tmp_path / "adapter" / "adapter_config.json", tmp_path / "base" / "model.safetensors"
    values = json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}
    file.write_text(json.dumps(values))
    tensors = load_file(weights)
    save_file({name: value.astype(jax.numpy.bfloat16) for name, value in tensors.items()}, weights)
    np.testing.assert_allclose(rewards(tmp_path / "adapter"), rewards(exported / "adapter"), atol=0.02)
    file.write_text(json.dumps(values | {"lora_alpha": 3}))
    with pytest.raises(
        InputError, match=r"lora_alpha is 3; the adapter was trained with 32\.0 \(rmjax\.json\): restore"
    ):
        load_pipeline(str(tmp_path / "adapter"))
    file.write_text(json.dumps(values))
    tensors["model.layers.1.self_attn.q_proj.weight"][0] += 0.5
    save_file(tensors, weights)
    with pytest.raises(
        InputError, match=r"of another base model: the matrices in .*base have the right shapes, and other"
    ):
        load_pipeline(str(tmp_path / "adapter"))


def continuing(made, path):
    """Returns a configuration with the adapters of `exported`, that starts from `path`."""
    config = adapters(made)
    config.lora.rslora, config.lora.targets = True, "attention/(query|value)|down"
    config.model.path, config.model.param_dtype = str(path), "float32"
    return config


@pytest.mark.parametrize("source", ["adapter", "run"])
def test_the_same_adapters_are_continued_on_the_original_base_model(made, exported, tmp_path, source):
    config, output = continuing(made, exported / source), []
    config.optimizer.learning_rate, config.train.steps = 0.0, 1
    train(config, tmp_path / "same", log=output.append)
    assert f"continues the adapters of {exported / source} (rank 4, alpha 32) on {made / 'base'}" in output
    chex.assert_trees_all_equal(restored(tmp_path / "same"), restored(exported / "run"))
    assert Workdir(tmp_path / "same").frozen_path() == str(made / "base")


def test_continued_adapters_are_trained_resumed_and_exported_for_the_original_base_model(made, exported, tmp_path):
    config, output = continuing(made, exported / "adapter"), []
    config.optimizer.learning_rate, config.train.steps = 1e-2, 6
    train(config, tmp_path / "more")
    assert lines(tmp_path / "more", "validation")[0]["reward_mean"] == pytest.approx(
        lines(exported / "run", "validation")[-1]["reward_mean"], abs=1e-6
    )
    shutil.rmtree(tmp_path / "more" / "checkpoints" / "6")
    train(config, tmp_path / "more", log=output.append)
    assert not [line for line in output if "the adapters of" in line]  # said once, at the start
    export(tmp_path / "more", tmp_path / "adapter", peft=True)
    values = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == str(made / "base")
    found = rewards(tmp_path / "adapter")
    assert abs(found - rewards(exported / "run")).max() > 1e-3
    np.testing.assert_allclose(found, rewards(tmp_path / "more"), atol=1e-6)
    check_peft(tmp_path / "adapter", tmp_path / "more", tmp_path)


@pytest.mark.parametrize(
    ("source", "change", "line"),
    [
        ("adapter", {"lora.rank": 2}, "their rank is 4 in 'model.layers.0.self_attn.q_proj', that of config.lora 2"),
        ("run", {"lora.rank": 2}, "their rank is 4, config.lora.rank is 2"),
        ("run", {"lora.alpha": 2.0}, r"their scale is 16, that of config.lora \(alpha, rank and rslora\) 1"),
        ("run", {"lora.targets": ""}, r"their targets are 'attention/.*down', config.lora.targets is ''"),
        ("run", {"train.trainable": "lora|head|norm"}, r"config.train.trainable is 'lora\|head\|norm'"),
        ("run", {"model.frozen_dtype": "int8"}, "their base model has frozen_dtype '', config.model.frozen_dtype is"),
        ("adapter", {"lora.rank": 0}, None),
    ],
)
def test_other_adapters_are_merged_and_the_reason_is_told(made, exported, source, change, line):
    config = continuing(made, exported / source)
    config.update_from_flattened_dict(change)
    model = loading.make_model(config.model, 260)
    model = dataclasses.replace(model, lora=lora.LoraConfig.from_config(config.lora))
    found = continued.find(config, model)
    assert not found.base
    expected = rf"and new ones begin, since {line}" if line else r"\(config.lora.rank is 0\)"
    assert re.match(rf"the adapters of .*/{source} are added to its matrices,? {expected}", found.line)


def test_a_run_may_start_from_one_whose_parameters_have_another_dtype(made, tmp_path):
    config = adapters(made)  # that of `made / "run"`, whose frozen parameters are bfloat16
    config.model.path, config.model.param_dtype, config.lora.rank, config.train.steps = (
        str(made / "run"),
        "float32",
        0,
        1,
    )
    train(config, tmp_path / "run")
    assert lines(tmp_path / "run", "validation")[0]["reward_mean"] == pytest.approx(
        float(rewards(made / "run").mean()), abs=1e-3
    )


def test_peft_computes_the_same_rewards(exported, tmp_path):
    check_peft(exported / "adapter", exported / "run", tmp_path)


def test_peft_computes_the_same_rewards_with_dora(made, tmp_path):
    config = adapters(made)
    config.model.param_dtype, config.lora.dora = "float32", True
    train(config, tmp_path / "run")
    assert any(path.startswith("params/") and path.endswith("lora_magnitude") for path in saved_paths(tmp_path / "run"))
    leaves = pytree.flatten(restored(tmp_path / "run"))
    norms = np.linalg.norm(leaves["decoder/layers/mlp/up/kernel"], axis=1)
    assert abs(leaves["decoder/layers/mlp/up/lora_magnitude"] - norms).max() > 1e-3  # it was trained
    export(tmp_path / "run", tmp_path / "adapter", peft=True)
    check_peft(tmp_path / "adapter", tmp_path / "run", tmp_path)


def check_peft(adapter, run, tmp_path):
    """Checks rewards both ways: our directory in PEFT, and the one that PEFT saves as a model here."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(adapter)
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(adapter), num_labels=1).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    found = []
    for item in list(synthetic.comparisons("validation", 40))[:8]:
        texts = [item.record["prompt"] + item.record[key] + tokenizer.eos_token for key in ("chosen", "rejected")]
        inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            found.append(model(**inputs).logits.numpy())
    np.testing.assert_allclose(np.concatenate(found), rewards(run)[:16], atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(rewards(tmp_path / "saved"), rewards(run), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora.rank": 0, "train.trainable": "head"}, r"run trained no adapters \(config.lora.rank is 0\)"),
        (
            {"train.trainable": "lora|norm|head"},
            r"trained more than adapters and the head \(.* is 'lora\|norm\|head'\)",
        ),
        ({"model.path": "", "model.param_dtype": "float32"}, r"of the run is not saved \(config.model.path is empty\)"),
    ],
)
def test_a_run_that_is_more_than_an_adapter_is_not_exported_as_one(made, tmp_path, change, message):
    config = adapters(made)
    config.update_from_flattened_dict(change | {"train.steps": 1})
    train(config, tmp_path / "run")
    with pytest.raises(InputError, match=message):
        export(tmp_path / "run", tmp_path / "adapter", peft=True)
    assert not (tmp_path / "adapter").exists()


def test_an_artifact_is_not_exported_as_an_adapter(made, tmp_path):
    with pytest.raises(InputError, match="base is not a workdir; export it without --peft"):
        export(made / "base", tmp_path / "adapter", peft=True)


def test_the_program_writes_an_adapter(made, tmp_path, run_main, capsys):
    run_main("export", f"--workdir={made / 'run'}", f"--output={tmp_path / 'adapter'}", "--peft")
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'adapter'}")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_parameters_named_by_a_regex_are_trained_and_no_others(made, tmp_path):
    config = adapters(made)
    config.lora.rank, config.train.trainable, config.model.param_dtype = 0, "^head/|norm", "float32"
    train(config, tmp_path / "run")
    tensors, params = load_file(made / "base" / "model.safetensors"), restored(tmp_path / "run")
    changed = {
        "decoder/norm/scale": "model.norm.weight",
        "decoder/layers/mlp_norm/scale": "model.layers.0.post_attention_layernorm.weight",
        "decoder/layers/attention/query/kernel": "model.layers.0.self_attn.q_proj.weight",
        "decoder/embedding/weight": "model.embed_tokens.weight",
    }
    for path, name in changed.items():
        leaf = params[path][0] if "layers" in path else params[path]
        assert (leaf != (tensors[name].T if "kernel" in path else tensors[name])).any() == ("norm" in path)
