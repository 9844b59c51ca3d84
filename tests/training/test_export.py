"""Export: heads with scale and shift give transformers' logits up to the shift; files follow the umask."""

import dataclasses
import json
import os
import pathlib

import jax
import numpy as np
import pytest
import tokenizers
import transformers
from safetensors.numpy import load_file, save_file

import rmjax
import rmjax.export as program
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.data.records import synthetic
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.evaluation.score_file import score_file
from rmjax.models import loading
from rmjax.models.workdir import Workdir
from rmjax.training.experiment import train
from rmjax.training.export import export
from tests.training.conftest import tiny as tiny_config

EXPORTS = {"raw": {}, "merged": {"merge": ["order=2", "start=-0.5"]}}


@pytest.fixture(autouse=True)
def unset_flags():
    """Sets the flags of the program back after each test."""
    yield
    program.FLAGS.values.unparse_flags()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workdir of two standardized attributes (`two`), one of pairs (`one`), a file of records, and the artifacts."""
    path = tmp_path_factory.mktemp("made")
    records = [item.record for item in synthetic.comparisons("validation", 12, "regression")]
    (path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name in ("two", "one"):
        config = tiny_config.__wrapped__()
        config.train.steps, config.optimizer.learning_rate = 30, 3e-3
        if name == "two":
            config.data.format = config.objective.name = "regression"
            config.objective.standardize = True
        train(config, path / name)
    for name, options in EXPORTS.items():
        export(path / "two", path / name, **options)
    export(path / "one", path / "standardized", standardize=True)
    export(path / "one", path / "plain")
    return path


def rewards(model, source):
    """Returns the rewards [n, A] of a model for a file of single responses."""
    pipeline = load_pipeline(str(model))
    items = read_evaluation_data(source, pipeline.options)
    return np.concatenate([pipeline.rewards([item])[0] for item in items])


def logits(model, source):
    """Returns transformers' logits [n, A] for the same conversations."""
    torch = pytest.importorskip("torch")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    records = [json.loads(line) for line in source.read_text().splitlines()]
    texts = [record["prompt"] + record["response"] + tokenizer.eos_token for record in records]
    inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        return classifier(**inputs).logits.numpy()


def metadata(model):
    return json.loads((model / "rmjax.json").read_text())


@pytest.mark.parametrize("name", ["raw", "merged", "standardized", "plain"])
def test_rewards_are_the_logits_of_transformers_plus_the_stated_shift(made, name):
    found = rewards(made / name, made / "in.jsonl")
    shift = metadata(made / name)["transformers_shift"]
    assert np.std(found) > 1e-2  # rewards that differ, so that agreement is meaningful
    np.testing.assert_allclose(found, logits(made / name, made / "in.jsonl") + np.array(shift), atol=1e-4)
    assert len(shift) == found.shape[1]
    assert any(shift) == (name != "plain")
    assert metadata(made / name)["scale"] == []


def test_pipelines_of_transformers_return_rewards_not_probabilities(made):
    pytest.importorskip("torch")
    classify = transformers.pipeline("text-classification", str(made / "plain"))
    found = classify("some text" + classify.tokenizer.eos_token)
    (expected,) = rmjax.load(made / "plain").score("some", [" text"])
    assert found == [{"label": "reward", "score": pytest.approx(expected, abs=1e-4)}]
    assert expected < 0 or expected > 1  # not a probability


def test_rewards_of_a_workdir_equal_those_of_its_artifact(made):
    for workdir, artifact in (("two", "raw"), ("one", "plain")):
        found = [rewards(made / name, made / "in.jsonl") for name in (workdir, artifact)]
        np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-5)
    assert Workdir(made / "two").head().scale  # which the artifact has in its weights


def test_a_model_that_is_not_finite_is_not_exported(made, tmp_path, monkeypatch):
    def load(*arguments, **options):
        loaded = load_model(*arguments, **options)
        return dataclasses.replace(loaded, params=loaded.params | {"head": {"kernel": np.array([[np.inf], [1.0]])}})

    load_model = loading.load_model
    monkeypatch.setattr(loading, "load_model", load)
    with pytest.raises(InputError, match=r"head/kernel is not finite, so the model is not exported"):
        export(made / "one", tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_training_continues_from_an_artifact_as_from_its_workdir(made):
    """The scale, which the artifact's weights contain, is taken out of them again."""
    config = Workdir(made / "two").config()
    head, mesh, found = Workdir(made / "two").head(), make_mesh((-1, 1, 1, 1)), []
    for name in ("two", "raw"):
        config.model.path = str(made / name)
        model = loading.make_model(config.model, 0, head)
        with jax.set_mesh(mesh):
            found.append(loading.initial_params(config.model, model, mesh, jax.random.key(0))["head"]["kernel"])
    np.testing.assert_allclose(*found, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "printed"), [([], "start +"), (["--merge=order=1"], "reward "), (["--merge=order=0,start=0"], "")]
)
def test_program_prints_a_remaining_shift(made, tmp_path, capsys, arguments, printed):
    program.FLAGS.parse(["export", f"--workdir={made / 'two'}", f"--output={tmp_path / 'artifact'}", *arguments])
    program.main([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (2 if printed else 1)
    if printed:
        assert lines[0].startswith("note: rewards are the logits of transformers plus a shift (transformers_shift")
        assert printed in lines[0]


@pytest.mark.parametrize(("name", "lines"), [("LlamaForSequenceClassification", 1), (None, 2)])
def test_program_prints_that_transformers_has_no_such_classifier(made, tmp_path, capsys, monkeypatch, name, lines):
    metadata = {"transformers_class": name, "transformers_shift": [0.0], "attributes": ["reward"]}
    monkeypatch.setattr(program, "export", lambda *_, **__: metadata)
    program.FLAGS.parse(["export", f"--workdir={made / 'two'}", f"--output={tmp_path / 'artifact'}"])
    program.main([])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == lines
    assert printed[0].startswith("note: transformers has no sequence classifier of this family") == (name is None)


def test_written_files_and_directories_follow_the_umask(tiny, made, tmp_path, monkeypatch):
    monkeypatch.setenv("RMJAX_CACHE", str(tmp_path / "cache"))
    source = made / "in.jsonl"
    tiny.data.train = tiny.data.validation = (str(source),)
    tiny.objective.name = "regression"
    old = os.umask(0o022)
    try:
        train(tiny, tmp_path / "run")
        export(tmp_path / "run", tmp_path / "artifact")
        pipeline = load_pipeline(str(tmp_path / "artifact"))
        score_file(pipeline, str(source), tmp_path / "scores.jsonl")
        evaluate(pipeline, read_evaluation_data([source], pipeline.options)).save(tmp_path / "report")
    finally:
        os.umask(old)
    paths = [path for path in pathlib.Path(tmp_path).rglob("*") if path != tmp_path]
    assert {"rmjax.json", "model.safetensors", "tokens.npy", "report.html", "metrics.jsonl"} <= {p.name for p in paths}
    wrong = [path for path in paths if path.stat().st_mode & 0o777 != (0o755 if path.is_dir() else 0o644)]
    assert not wrong


def save_foreign(path, tokenizer, size, head):
    """Saves a tiny random Llama with a vocabulary of `size` tokens and the tensors `head`, by transformers."""
    torch = pytest.importorskip("torch")
    options = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=size, **options)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.15)
    model.save_pretrained(path)
    save_file(load_file(path / "model.safetensors") | head, path / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(path)


def without_spare_token():
    """Returns a byte-level tokenizer whose one special token is <eos>, which also pads."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<eos>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens(["<eos>"])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


@pytest.mark.parametrize(("size", "expected"), [(257, 258), (320, 320)])
def test_a_padding_token_is_added_to_a_vocabulary_without_a_spare_one(made, tmp_path, size, expected):
    """Conversations padded to one length get the scores of before the export, in rmjax bit for bit."""
    head = {"v_head.summary.weight": np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)}
    head |= {"v_head.summary.bias": np.array([0.75], np.float32)}
    save_foreign(tmp_path / "model", without_spare_token(), size, head)
    exported = export(tmp_path / "model", tmp_path / "artifact")
    assert exported["added_padding_token"] == "<|rmjax_pad|>"
    assert exported["transformers_shift"] == [0.75]
    config = json.loads((tmp_path / "artifact" / "config.json").read_text())
    assert (config["vocab_size"], config["pad_token_id"]) == (expected, 257)
    before, after = (rewards(tmp_path / name, made / "in.jsonl") for name in ("model", "artifact"))
    np.testing.assert_array_equal(before, after)
    assert len({len(line) for line in (made / "in.jsonl").read_text().splitlines()}) > 1
    np.testing.assert_allclose(after, logits(tmp_path / "artifact", made / "in.jsonl") + 0.75, atol=1e-4)
