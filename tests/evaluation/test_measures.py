"""What an evaluation holds beyond the metrics of training: rankings, robustness, comparison, suspicious labels."""

import json

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.data.records.options import ReadOptions
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.evaluation.robustness import FILLER, changed, strip_markdown
from rmjax.evaluation.scores import clusters
from tests.evaluation.test_pipeline import make_pipeline, write


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
    with pytest.raises(InputError, match="no scored preference in common"):
        evaluate(models[0], items[:1], progress=False).compare(evaluate(models[0], items[1:2], progress=False))


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
