"""The other tasks through every layer: train, validate, evaluate, export."""

import json
import math

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.data.records import synthetic
from rmjax.data.records.parsers import NEMO, ReadOptions
from rmjax.evaluation.evaluation import evaluate, read_labelled
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.evaluation.score_file import score_file
from rmjax.training.experiment import train
from rmjax.training.export import export


def lines(workdir, split="validation"):
    every = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["split"] == split]


def write(path, format, size=24, **options):
    """Writes built-in comparisons as a file of their format."""
    records = [item.record for item in synthetic.comparisons("train", size, format)]
    path.write_text("".join(json.dumps(record | options) + "\n" for record in records))
    return str(path)


def options_of(config, format, objective, **more):
    config.data.format, config.objective.name = format, objective
    for key, value in more.items():
        config.objective[key] = value
    return config


@pytest.mark.parametrize(
    ("format", "objective", "options", "metrics", "at_zero"),
    [
        ("kwise", "pairwise", {}, {"accuracy", "accuracy_ceiling"}, math.log(2)),
        ("kwise", "plackett_luce", {"reward_l2": 0.01}, {"accuracy", "loss/plackett_luce", "loss/reward_l2"},
         math.log(24)),
        ("regression", "regression", {"standardize": True}, {"mse/order", "pearson/start", "spearman", "mse_floor"},
         None),
        ("process", "process", {}, {"accuracy", "auc", "accuracy_ceiling"}, math.log(2)),
    ],
)  # fmt: skip
def test_each_task_trains_and_reports(tiny, tmp_path, format, objective, options, metrics, at_zero):
    tiny = options_of(tiny, format, objective, **options)
    outcome = train(tiny, tmp_path / "run")
    assert metrics <= set(outcome.validation)
    if at_zero is None:  # standardised labels have variance 1, and the head starts at their mean
        assert lines(tmp_path / "run", "train")[0]["loss"] == pytest.approx(1, abs=0.4)
    else:  # a head of zeros knows nothing
        assert lines(tmp_path / "run")[0]["loss"] == pytest.approx(at_zero, abs=1e-5)

    # The same model, evaluated on the same data by the other path, gives the same figures.
    pipeline = load_pipeline(str(tmp_path / "run"))
    items = read_labelled(["synthetic"], ReadOptions(format=format), limit=40)
    best = max(lines(tmp_path / "run"), key=lambda line: line.get("accuracy", line.get("spearman", 0)))
    evaluate(pipeline, items, tmp_path / "report", title="t")
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    for name in metrics - {"loss/plackett_luce", "loss/reward_l2"}:
        assert found[name] == pytest.approx(best[name], abs=1e-4), name


@pytest.mark.parametrize("change", [
    {"data.row_length": 256}, {"train.rows_per_device": 1}, {"mesh.data": 2, "mesh.fsdp": 2},
])  # fmt: skip
def test_layout_changes_no_result_of_a_mixture(tiny, tmp_path, change):
    """Two terms with different weights: each is divided by its own, however the step is laid out."""
    sources = (write(tmp_path / "r.jsonl", "regression"), write(tmp_path / "p.jsonl", "pairs"))
    tiny = options_of(tiny, "auto", "regression+regression_bt", reward_attribute="order", weights=(0.3, 1.0))
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


def test_sources_are_mixed_by_weight_and_validation_sets_are_reported_by_name(tiny, tmp_path, capsys):
    first, second = write(tmp_path / "a.jsonl", "pairs", 40), write(tmp_path / "b.jsonl", "pairs", 20)
    tiny.data.train, tiny.data.weights = (first, second), (1.0, 3.0)
    tiny.data.validation = (f"one={first}", f"two={second}")
    outcome = train(tiny, tmp_path / "run")
    assert "warning: 60 of 60 validation comparisons are in the training data too" in capsys.readouterr().out
    assert {"one/accuracy", "two/accuracy"} <= set(outcome.validation)
    whole = (40 * outcome.validation["one/accuracy"] + 20 * outcome.validation["two/accuracy"]) / 60
    assert outcome.validation["accuracy"] == pytest.approx(whole)
    tiny.data.weights = (1.0,)
    with pytest.raises(InputError, match=r"data.weights has 1 entries, config.data.train 2 sources"):
        train(tiny, tmp_path / "wrong")


def test_data_that_says_nothing_to_the_objective_is_named(tiny, tmp_path):
    tiny.data.train = tiny.data.validation = (write(tmp_path / "a.jsonl", "pairs"),)
    tiny.objective.name = "regression"
    with pytest.raises(InputError, match=r"no record has a label of the head's attributes, which 'regression' learns"):
        train(tiny, tmp_path / "run")
    tiny = options_of(tiny, "auto", "bradley_terry")
    tiny.data.train = tiny.data.validation = (write(tmp_path / "b.jsonl", "regression"),)
    with pytest.raises(InputError, match=r"no record has a preference, which 'bradley_terry' learns from"):
        train(tiny, tmp_path / "run")
    tiny.data.train = (write(tmp_path / "c.jsonl", "pairs"), write(tmp_path / "b.jsonl", "regression"))
    with pytest.raises(InputError, match=r"b.jsonl:1: it has no preference"):
        train(tiny, tmp_path / "run")
    tiny.data.validation = ("synthetic",)
    with pytest.raises(InputError, match=r"config.data.validation is the built-in data, 'synthetic', and"):
        train(tiny, tmp_path / "run")
    soft = [item.record | {"probability": 0.8} for item in synthetic.comparisons("train", 24)]
    (tmp_path / "soft.jsonl").write_text("".join(json.dumps(record) + "\n" for record in soft))
    tiny = options_of(tiny, "pairs", "plackett_luce")
    tiny.data.train = tiny.data.validation = (str(tmp_path / "soft.jsonl"),)
    with pytest.raises(InputError, match=r"only 0.8 probable, and plackett_luce knows no soft labels"):
        train(tiny, tmp_path / "run")


def test_the_configuration_names_labels_that_have_no_names(tiny, tmp_path):
    texts = [item.record["prompt"] + item.record["chosen"] for item in synthetic.comparisons("train", 24)]
    lines = [json.dumps({"text": text, "label": [i % 3, i % 2]}) + "\n" for i, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    tiny = options_of(tiny, "auto", "regression")
    tiny.objective.attributes = ("helpfulness", "length")
    tiny.data.train = tiny.data.validation = (str(tmp_path / "a.jsonl"),)
    assert {"mse/helpfulness", "mse/length"} <= set(train(tiny, tmp_path / "run").validation)


def test_other_data_or_another_head_is_refused(tiny, tmp_path):
    source = tmp_path / "a.jsonl"
    tiny.data.train = tiny.data.validation = (write(source, "pairs"),)
    train(tiny, tmp_path / "run")
    write(source, "pairs", 25)
    with pytest.raises(InputError, match=r"holds a run whose training data was other"):
        train(tiny, tmp_path / "run")
    tiny = options_of(tiny, "regression", "regression", standardize=True)
    tiny.data.train = tiny.data.validation = ("synthetic",)
    tiny.model.path = str(tmp_path / "run")
    with pytest.raises(InputError, match=r"its head gives reward with scale"):
        train(tiny, tmp_path / "other")


def test_nemos_preferences_are_trained_on_and_evaluated(tiny, tmp_path):
    pairs = [item.record for item in synthetic.comparisons("train", 24)]
    label = [-2, *[-100] * 8]  # the first of two lines is the better one
    texts = [record["prompt"] + record[key] for record in pairs for key in ("chosen", "rejected")]
    source = tmp_path / "nemo.jsonl"
    source.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text in texts))
    tiny = options_of(tiny, "auto", "regression_bt", strength=True)
    tiny.data.train = tiny.data.validation = (str(source),)
    outcome = train(tiny, tmp_path / "run")
    pipeline = load_pipeline(str(tmp_path / "run"))
    assert pipeline.attributes == NEMO
    evaluate(pipeline, read_labelled([str(source)], pipeline.options), tmp_path / "report", title="t")
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())["accuracy"]
    best = max(line["accuracy"] for line in lines(tmp_path / "run"))
    assert found == pytest.approx(best)
    assert outcome.validation["loss"] < 2 * math.log(2)


def test_an_artifact_can_merge_attributes_and_standardise(tiny, tmp_path):
    tiny = options_of(tiny, "regression", "regression", standardize=True)
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


def test_standardised_rewards_have_mean_0_and_std_1_on_the_validation_data(tiny, tmp_path):
    train(tiny, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "artifact", standardize=True)
    pipeline = load_pipeline(str(tmp_path / "artifact"))
    evaluate(pipeline, read_labelled(["synthetic"], ReadOptions(), limit=40), tmp_path / "report", title="t")
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["reward_mean"] == pytest.approx(0, abs=1e-3)
    assert metrics["reward_std"] == pytest.approx(1, abs=1e-3)


def test_a_resumed_run_of_another_head_is_refused(tiny, tmp_path):
    train(tiny, tmp_path / "run")
    with pytest.raises(InputError, match=r"objective.name: 'bradley_terry' there, 'plackett_luce' here"):
        train(options_of(tiny, "auto", "plackett_luce"), tmp_path / "run")
