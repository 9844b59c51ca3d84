"""K-wise, regression and process tasks end to end: train, validate, evaluate, export."""

import json
import math

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.core.state_files import StateWarning
from rmjax.data.records import synthetic
from rmjax.data.records.formats.single import NEMO
from rmjax.data.records.options import ReadOptions
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.evaluation.score_file import score_file
from rmjax.training.experiment import train
from rmjax.training.export import export
from tests.glossary import undefined


def lines(workdir, split="validation"):
    every = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["split"] == split]


def write(path, format, size=24, **options):
    """Writes built-in comparisons as a file in the given format and returns its path."""
    records = [item.record for item in synthetic.comparisons("train", size, format)]
    path.write_text("".join(json.dumps(record | options) + "\n" for record in records))
    return str(path)


def with_objective(config, format, objective, **more):
    config.data.format, config.objective.name = format, objective
    for key, value in more.items():
        config.objective[key] = value
    return config


@pytest.mark.parametrize(
    ("format", "objective", "options", "metrics", "at_zero"),
    [
        ("kwise", "pairwise", {}, {"accuracy", "accuracy_ceiling"}, math.log(2)),
        (
            "kwise",
            "plackett_luce",
            {"reward_l2": 0.01},
            {"accuracy", "loss/plackett_luce", "loss/reward_l2"},
            math.log(24),
        ),
        (
            "regression",
            "regression",
            {"standardize": True},
            {"mse/order", "pearson/start", "spearman", "mse_floor"},
            None,
        ),
        ("process", "process", {}, {"accuracy", "auc", "accuracy_ceiling"}, math.log(2)),
    ],
)
def test_each_task_trains_and_reports(tiny, tmp_path, format, objective, options, metrics, at_zero):
    tiny = with_objective(tiny, format, objective, **options)
    result = train(tiny, tmp_path / "run")
    assert metrics <= set(result.validation)
    assert undefined(set().union(*lines(tmp_path / "run"), *lines(tmp_path / "run", "train")) - {"step", "split"}) == []
    if at_zero is None:  # standardized labels have variance 1, and a zero head predicts their mean
        assert lines(tmp_path / "run", "train")[0]["loss"] == pytest.approx(1, abs=0.4)
    else:  # all rewards of a zero head are 0
        assert lines(tmp_path / "run")[0]["loss"] == pytest.approx(at_zero, abs=1e-5)

    # Evaluation of the same model on the same data gives the same metrics.
    pipeline = load_pipeline(str(tmp_path / "run"))
    items = read_evaluation_data(["synthetic"], ReadOptions(format=format), limit=40)
    best = max(lines(tmp_path / "run"), key=lambda line: line.get("accuracy", line.get("spearman", 0)))
    evaluate(pipeline, items, title="t").save(tmp_path / "report")
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    for name in metrics - {"loss/plackett_luce", "loss/reward_l2"}:
        assert found[name] == pytest.approx(best[name], abs=1e-4), name


@pytest.mark.parametrize(
    "change", [{"data.row_length": 256}, {"train.rows_per_device": 1}, {"mesh.data": 2, "mesh.fsdp": 2}]
)
def test_memory_layout_does_not_change_the_losses_of_a_mixture(tiny, tmp_path, change):
    """Each of two terms is divided by its own total weight, for any microbatches and devices."""
    sources = (write(tmp_path / "r.jsonl", "regression"), write(tmp_path / "p.jsonl", "pairs"))
    tiny = with_objective(tiny, "auto", "regression+regression_bt", reward_attribute="order", weights=(0.3, 1.0))
    tiny.data.train = tiny.data.validation = sources
    train(tiny, tmp_path / "one")
    for key, value in change.items():
        section, name = key.split(".")
        tiny[section][name] = value
    train(tiny, tmp_path / "other")
    one, other = (lines(tmp_path / name, "train") for name in ("one", "other"))
    for a, b in zip(one, other, strict=True):
        for name in ("loss", "loss/regression", "loss/regression_bt", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name


def test_sources_are_mixed_by_weight_and_named_validation_sources_have_metrics(tiny, tmp_path, capsys):
    first, second = write(tmp_path / "a.jsonl", "pairs", 40), write(tmp_path / "b.jsonl", "pairs", 20)
    tiny.data.train, tiny.data.weights = (first, second), (1.0, 3.0)
    tiny.data.validation = (f"one={first}", f"two={second}")
    result = train(tiny, tmp_path / "run")
    assert "warning: 60 of 60 validation comparisons are in the training data too" in capsys.readouterr().out
    assert {"one/accuracy", "two/accuracy"} <= set(result.validation)
    whole = (40 * result.validation["one/accuracy"] + 20 * result.validation["two/accuracy"]) / 60
    assert result.validation["accuracy"] == pytest.approx(whole)
    tiny.data.weights = (1.0,)
    with pytest.raises(InputError, match=r"data.weights has 1 entry, config.data.train 2 sources"):
        train(tiny, tmp_path / "wrong")


def test_data_without_the_labels_of_the_objective_is_refused(tiny, tmp_path):
    tiny.data.train = tiny.data.validation = (write(tmp_path / "a.jsonl", "pairs"),)
    tiny.objective.name = "regression"
    with pytest.raises(
        InputError, match=r"no record has a label of the head's attributes, which objective 'regression' needs"
    ):
        train(tiny, tmp_path / "run")
    tiny = with_objective(tiny, "auto", "bradley_terry")
    tiny.data.train = tiny.data.validation = (write(tmp_path / "b.jsonl", "regression"),)
    with pytest.raises(InputError, match=r"no record has a preference, which objective 'bradley_terry' needs"):
        train(tiny, tmp_path / "run")
    tiny.data.train = (write(tmp_path / "c.jsonl", "pairs"), write(tmp_path / "b.jsonl", "regression"))
    with pytest.raises(InputError, match=r"b.jsonl:1: the record has no preference"):
        train(tiny, tmp_path / "run")
    tiny.data.validation = ("synthetic",)
    with pytest.raises(InputError, match=r"config.data.validation is the built-in data, 'synthetic', and"):
        train(tiny, tmp_path / "run")
    soft = [item.record | {"probability": 0.8} for item in synthetic.comparisons("train", 24)]
    (tmp_path / "soft.jsonl").write_text("".join(json.dumps(record) + "\n" for record in soft))
    tiny = with_objective(tiny, "pairs", "plackett_luce")
    tiny.data.train = tiny.data.validation = (str(tmp_path / "soft.jsonl"),)
    with pytest.raises(
        InputError, match=r"probability 0.8, and objective 'plackett_luce' does not support soft labels"
    ):
        train(tiny, tmp_path / "run")


def test_the_configuration_names_unnamed_labels(tiny, tmp_path):
    texts = [item.record["prompt"] + item.record["chosen"] for item in synthetic.comparisons("train", 24)]
    lines = [json.dumps({"text": text, "label": [i % 3, i % 2]}) + "\n" for i, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    tiny = with_objective(tiny, "auto", "regression")
    tiny.objective.attributes = ("helpfulness", "length")
    tiny.data.train = tiny.data.validation = (str(tmp_path / "a.jsonl"),)
    assert {"mse/helpfulness", "mse/length"} <= set(train(tiny, tmp_path / "run").validation)


def test_changed_data_or_another_head_is_refused(tiny, tmp_path):
    for split in ("train", "validation"):
        tiny.data[split] = (write(tmp_path / f"{split}.jsonl", "pairs"),)
    train(tiny, tmp_path / "run")
    for split, kind in (("validation", "validation"), ("train", "training")):
        write(tmp_path / f"{split}.jsonl", "pairs", 25)
        message = rf"holds a run with other {kind} data than config\.data\.{split} gives now; restore the data"
        with pytest.raises(InputError, match=message):
            train(tiny, tmp_path / "run")
        write(tmp_path / f"{split}.jsonl", "pairs")
    (tmp_path / "run" / "sums.json").unlink()
    hashes = tmp_path / "run" / "data.json"
    hashes.write_text(json.dumps({"train": json.loads(hashes.read_text())["train"]}))
    with pytest.warns(StateWarning, match="without checksums"):
        train(tiny, tmp_path / "run")  # of an older version, without a hash of the validation data
    tiny = with_objective(tiny, "regression", "regression", standardize=True)
    tiny.data.train = tiny.data.validation = ("synthetic",)
    tiny.model.path = str(tmp_path / "run")
    with pytest.raises(InputError, match=r"the reward head predicts reward; the objective expects order, start"):
        train(tiny, tmp_path / "other")


def test_nemo_aligner_preferences_are_trained_and_evaluated(tiny, tmp_path):
    pairs = [item.record for item in synthetic.comparisons("train", 24)]
    label = [-2, *[-100] * 8]  # the first of two lines is the better one
    texts = [record["prompt"] + record[key] for record in pairs for key in ("chosen", "rejected")]
    source = tmp_path / "nemo.jsonl"
    source.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text in texts))
    tiny = with_objective(tiny, "auto", "regression_bt", strength=True)
    tiny.data.train = tiny.data.validation = (str(source),)
    result = train(tiny, tmp_path / "run")
    pipeline = load_pipeline(str(tmp_path / "run"))
    assert pipeline.attributes == NEMO
    evaluate(pipeline, read_evaluation_data([str(source)], pipeline.options)).save(tmp_path / "report")
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())["accuracy"]
    best = max(line["accuracy"] for line in lines(tmp_path / "run"))
    assert found == pytest.approx(best)
    assert result.validation["loss"] < 2 * math.log(2)


def test_export_merges_attributes(tiny, tmp_path):
    tiny = with_objective(tiny, "regression", "regression", standardize=True)
    train(tiny, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "both")
    export(tmp_path / "run", tmp_path / "merged", merge=["order=2", "start=-0.5"])
    source = write(tmp_path / "in.jsonl", "regression")
    found = {}
    for name in ("both", "merged"):
        score_file(load_pipeline(str(tmp_path / name)), source, tmp_path / f"{name}.jsonl")
        found[name] = [json.loads(line)["rewards"][0] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    expected = [2 * each["order"] - 0.5 * each["start"] for each in found["both"]]
    np.testing.assert_allclose(found["merged"], expected, atol=1e-4)
    with pytest.raises(InputError, match=r"--merge names the attribute 'x'; the head has order, start"):
        export(tmp_path / "run", tmp_path / "wrong", merge=["x=1"])
    with pytest.raises(InputError, match=r"--standardize needs one reward"):
        export(tmp_path / "run", tmp_path / "wrong", standardize=True)


def test_standardized_rewards_have_mean_0_and_std_1_on_the_validation_data(tiny, tmp_path):
    train(tiny, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "artifact", standardize=True)
    pipeline = load_pipeline(str(tmp_path / "artifact"))
    evaluate(pipeline, read_evaluation_data(["synthetic"], ReadOptions(), limit=40)).save(tmp_path / "report")
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["reward_mean"] == pytest.approx(0, abs=1e-3)
    assert metrics["reward_std"] == pytest.approx(1, abs=1e-3)


def test_resuming_with_another_objective_is_refused(tiny, tmp_path):
    train(tiny, tmp_path / "run")
    with pytest.raises(InputError, match=r"objective.name: 'bradley_terry' there, 'plackett_luce' here"):
        train(with_objective(tiny, "auto", "plackett_luce"), tmp_path / "run")
