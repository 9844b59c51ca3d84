"""Weight averages: of a model with itself, of linear heads, of models that do not fit together."""

import importlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rmjax
from rmjax.core.errors import InputError
from rmjax.evaluation.evaluate import read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.training.averaging import average
from rmjax.training.experiment import train
from rmjax.training.export import export
from tests.training.conftest import tiny as tiny_config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Artifacts `a`, `b` and `standardized` of heads on one random decoder."""
    path = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RMJAX_CACHE", str(path / "cache"))
        for name, rate in (("a", 1e-2), ("b", 3e-2)):
            config = tiny_config.__wrapped__()
            config.train.trainable, config.optimizer.learning_rate = "head", rate
            train(config, path / f"run_{name}", log=lambda line: None, progress=False)
            export(path / f"run_{name}", path / name)
    export(path / "run_b", path / "standardized", standardize=True)
    return path


def rewards(model):
    """Returns rewards float32 [n] of records of the built-in data."""
    pipeline = load_pipeline(str(model))
    items = read_evaluation_data(["synthetic"], pipeline.options, limit=8)
    return np.concatenate(pipeline.rewards(items))[:, 0]


def test_the_average_of_a_model_with_itself_is_that_model(made, tmp_path):
    rmjax.average([made / "a"] * 3, tmp_path / "same", weights=[0.1, 0.7, 0.3])
    found, expected = (load_file(path / "model.safetensors") for path in (tmp_path / "same", made / "a"))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes(), name
    assert rewards(tmp_path / "same").tobytes() == rewards(made / "a").tobytes()


@pytest.mark.parametrize("other", ["b", "standardized"])  # the latter has a shift
def test_linear_heads_on_one_decoder_give_the_mean_reward(made, tmp_path, other):
    metadata = average([made / "a", made / other], tmp_path / "mean", [3, 1])
    expected = 0.75 * rewards(made / "a") + 0.25 * rewards(made / other)
    np.testing.assert_allclose(rewards(tmp_path / "mean"), expected, atol=1e-5)
    assert [entry["weight"] for entry in metadata["averaged"]] == [0.75, 0.25]
    assert [entry["source_step"] for entry in metadata["averaged"]] == [3, 3]  # the best
    assert metadata["averaged"][0]["sha256"]["model.safetensors"]
    assert metadata.keys().isdisjoint(("reward_mean", "validation"))  # of one member


def test_dtypes_are_kept_and_a_hugging_face_directory_is_averaged(made, tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("a", "b"):
        copy = tmp_path / name
        copy.mkdir()
        for file in (made / name).iterdir():
            if file.name not in ("rmjax.json", "model.safetensors"):
                (copy / file.name).write_bytes(file.read_bytes())
        tensors = load_file(made / name / "model.safetensors")
        head = tensors.pop("score.weight")
        tensors = {key: array.astype(ml_dtypes.bfloat16) for key, array in tensors.items()}
        save_file(tensors | {"score.weight": head}, copy / "model.safetensors")
    average([tmp_path / "a", tmp_path / "b"], tmp_path / "mean")
    found = load_file(tmp_path / "mean" / "model.safetensors")
    assert {array.dtype.name for array in found.values()} == {"bfloat16", "float32"}
    assert found["score.weight"].dtype == np.float32
    assert json.loads((tmp_path / "mean" / "config.json").read_text())["dtype"] == "bfloat16"
    expected = (rewards(tmp_path / "a") + rewards(tmp_path / "b")) / 2
    np.testing.assert_allclose(rewards(tmp_path / "mean"), expected, atol=1e-5)
    with pytest.raises(InputError, match=r"the dtype of 'model.*BF16.*F32"):
        average([tmp_path / "a", made / "b"], tmp_path / "mixed")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"rms_norm_eps": 0.1}, "the architecture's norm_eps: 1e-05 and 0.1"),
        ("config.json", {"id2label": {"0": "harmless"}}, "the reward head's attributes"),
        ("chat_template.jinja", "{{ messages }}", "the chat template"),
    ],
)
def test_models_that_differ_are_refused_by_name(made, tmp_path, file, change, message):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (made / "a").iterdir():
        if path.name != "rmjax.json":  # which has checksums
            (copy / path.name).write_bytes(path.read_bytes())
    text = change if isinstance(change, str) else json.dumps(json.loads((copy / file).read_text()) | change)
    (copy / file).write_text(text)
    with pytest.raises(InputError, match=message):
        average([made / "a", copy], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("models", "weights", "message"),
    [
        (["a"], (), "there is 1 model to average; expected two or more"),
        (["a", "b"], (1, 2, 3), "weights has 3 entries"),
        (["a", "b"], (1, 0), "expected positive numbers"),
        (["a", "run_b"], (), "is a workdir; export its best checkpoint"),
    ],
)
def test_wrong_arguments_are_refused(made, tmp_path, models, weights, message):
    with pytest.raises(InputError, match=message):
        average([made / name for name in models], tmp_path / "out", weights)


def test_program_prints_members_and_average_in_one_table(made, tmp_path, capsys):
    program = importlib.import_module("rmjax.average")  # the attribute of that name is the function
    models = [str(made / "a"), str(made / "b"), str(tmp_path / "out")]
    flags = [f"--output={models[2]}", "--data=synthetic", "--limit=20"]
    program.main(program.FLAGS.parse(["average", models[0], flags[0], models[1], *flags[1:]]))
    program.FLAGS.values.unparse_flags()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == models
    assert all(" to " in line for line in lines[2:])
