"""What an evaluation holds beyond the metrics of training: rankings, robustness, comparison, suspicious labels."""

import dataclasses
import json

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Comparison
from rmjax.evaluation.comparison import check_comparable, compare_scores
from rmjax.evaluation.ensemble import EnsemblePipeline
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.measures.labels import label_values, measure_attributes
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.evaluation.robustness import CHANGES, FILLER, changed, strip_markdown
from rmjax.evaluation.scores import Scores, clusters
from tests.evaluation.test_pipeline import make_pipeline, write
from tests.glossary import undefined


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("measures")
    make_pipeline(path / "one")
    return load_pipeline(str(path / "one"), max_length=400), make_pipeline(path / "two", ("good", "short"))


@pytest.fixture
def items(tmp_path):
    answers = ["Yes. It is.", "**No** way.", "Maybe so, but I doubt it."]
    records = [
        {"prompt": f"Is it {i}?", "responses": answers[i % 3 :] + answers[: i % 3], "scores": [3, 1, 2]}
        for i in range(24)
    ]
    return read_evaluation_data([write(tmp_path / "in.jsonl", records * 2)], ReadOptions())


def test_every_figure_has_an_interval_over_prompts_and_sections_render(models, items, tmp_path):
    found = evaluate(models[0], items, robustness=("whitespace", "markdown", "order", "filler"), progress=False)
    metrics = found.metrics
    assert (metrics["comparisons"], metrics["prompts"]) == (48, 24)
    for name in ("accuracy", "brier", "kendall", "regret", "best_of_n/2", "robustness/filler/hacked", "temperature"):
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"] * (1 + 1e-4), name
    assert metrics["robustness/order/absolute"] < 1e-5
    assert metrics["robustness/markdown/responses"] == 48
    best = [line["rewards"] for line in found.predictions]
    picked = np.mean([[2, 0, 1][int(np.argmax(rewards))] for rewards in best])
    assert metrics["best_of_n/3"] == pytest.approx(picked)
    assert metrics["regret"] == pytest.approx(2 - picked)
    found.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    page = (tmp_path / "out" / "report.html").read_text()
    for section in found.sections:
        assert f">{section.title}</h2>" in page
    lines = [json.loads(line) for line in (tmp_path / "out" / "suspicious.jsonl").read_text().splitlines()]
    assert lines == found.suspicious
    assert all(line["probability"] < 0.1 and line["margin"] < 0 for line in lines)


def test_two_models_are_compared_on_the_same_data(models, items):
    one, other = (evaluate(model, items, progress=False) for model in models)
    found = one.compare(other)
    assert found.metrics["accuracy"] == pytest.approx(one.metrics["accuracy"])
    assert found.metrics["accuracy_other"] == pytest.approx(other.metrics["accuracy"])
    both = one.with_comparison(found)
    difference = one.metrics["accuracy"] - other.metrics["accuracy"]
    assert both.metrics["compare/accuracy_difference"] == pytest.approx(difference)
    assert both.sections[-1].title == "Comparison with another model"
    with pytest.raises(InputError, match="no scored comparison in common"):
        evaluate(models[0], items[:1], progress=False).compare(evaluate(models[0], items[1:2], progress=False))


def made_scores(rewards, labels, attributes, *, names=None, steps=()):
    """Scores of single responses, each with its labels of `attributes`, or of processes with `steps`."""
    comparisons = [
        Comparison((f"q{i}",), True, (), np.array(each, float), f"{i}", {}, attributes=attributes, steps=steps)
        for i, each in enumerate(labels)
    ]
    arrays = [np.array(each, np.float32) for each in rewards]
    merged, tokens = [each.mean(1) for each in arrays], [np.ones(1, int)] * len(arrays)
    return Scores(comparisons, arrays, merged, tokens, np.arange(len(arrays)), names or attributes)


def test_every_metric_is_in_the_glossary(models, items):
    split = [dataclasses.replace(one, subset=f"part{i % 2}") for i, one in enumerate(items[:24])]
    several = EnsemblePipeline(**vars(models[0]), others=models[:1])
    found = evaluate(several, split, robustness=tuple(CHANGES), progress=False)
    found = found.with_comparison(found.compare(found))
    assert {"uncertainty/error_auc_std", "robustness/filler/hacked", "compare/mcnemar_p"} <= found.metrics.keys()
    assert undefined(found.metrics, subsets=("part0", "part1")) == []
    assert undefined(["accuracy", "part0/accuracy", "new_metric", "uncertainty/new"]) == [
        *("part0/accuracy", "new_metric", "uncertainty/new")
    ]


def test_models_are_compared_by_the_attributes_that_both_have():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(30, 1, 2))
    good, bad = (labels + rng.normal(size=labels.shape) * size for size in (0.1, 1.0))
    one = made_scores(good, labels, ("a", "b"))
    other = made_scores(bad[..., ::-1], labels, ("a", "b"), names=("b", "c"))  # its b is the first column
    found = compare_scores(one, other)
    mse = np.mean(np.square(good - labels)[:, 0, 1]), np.mean(np.square(bad - labels)[:, 0, 1])
    assert found.metrics["mse/b_difference"] == pytest.approx(mse[0] - mse[1], abs=1e-5)
    assert found.metrics["mse_difference"] == pytest.approx(mse[0] - mse[1], abs=1e-5)  # over the common attributes
    assert found.metrics["mse_difference_high"] < 0 < found.metrics["pearson_difference_low"]
    assert "mse/a" not in found.metrics
    assert [name for name, _ in found.headline] == [
        *("mse of the other model", "mse difference", "pearson of the other model", "pearson difference")
    ]
    assert [row[0] for row in found.section.tables[0].rows] == [
        "mse",
        "pearson",
        "spearman",
        "mse/b",
        "pearson/b",
        "spearman/b",
    ]
    assert undefined(label_values(one, steps=False) | measure_attributes(one, {"mse/a": 0, "mse/b": 0}).metrics) == []
    assert undefined(f"compare/{name}" for name in found.metrics) == []
    same = compare_scores(one, one).metrics
    assert same["mse_difference_low"] == same["mse_difference_high"] == 0


def test_models_are_compared_by_steps():
    labels = [[[1], [0]], [[1], [1]], [[0], [1]], [[1], [0]]]
    right, first = [[[1], [-1]], [[1], [1]], [[-1], [1]], [[1], [-1]]], [[[1], [1]]] * 4
    scores = lambda rewards, name: made_scores(rewards, labels, ("correct",), names=(name,), steps=(1, 2))
    found = compare_scores(scores(right, "reward"), scores(first, "other")).metrics
    assert undefined(label_values(scores(right, "reward"), steps=True)) == []
    assert undefined(f"compare/{name}" for name in found) == []
    assert (found["accuracy"], found["accuracy_other"]) == (1, 5 / 8)
    assert (found["first_error_f1"], found["first_error_f1_other"], found["first_error_f1_difference"]) == (1, 0, 1)


def test_data_that_two_models_cannot_be_compared_on_is_refused(items):
    check_comparable(items, ("a",), ("b",))
    labeled = made_scores([[[1.0]]], [[[1.0]]], ("a",)).comparisons
    check_comparable(labeled, ("b", "a"), ("a",))
    check_comparable(made_scores([[[1.0]]], [[[1.0]]], ("a",), steps=(1,)).comparisons, ("b",), ("c",))
    for data, words in ((labeled, "labels of a"), ([dataclasses.replace(labeled[0], labels=None)], "labels of none")):
        with pytest.raises(InputError, match=rf"the rewards are a and b, and it has {words}; expected preferences"):
            check_comparable(data, ("a",), ("b",))


def test_changes_are_of_the_response_alone(items):
    (before, *_) = items[0].conversations
    (after, *_) = changed(items[0], "filler").conversations
    assert after == before + FILLER
    assert changed(items[0], "order").conversations == items[0].conversations[::-1]
    assert strip_markdown("2 * 3 * 4 and a_b_c") == "2 * 3 * 4 and a_b_c"


def test_an_unknown_change_is_an_error(models, items):
    with pytest.raises(InputError, match="robustness has 'typos'; expected a list of whitespace"):
        evaluate(models[0], items, robustness=("typos",))


def test_few_prompts_are_taken_as_fixed():
    assert len(set(clusters(["a", "b"] * 30).tolist())) == 60
    assert len(set(clusters([f"{i % 25}" for i in range(60)]).tolist())) == 25
