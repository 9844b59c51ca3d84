"""The report of a training run: its facts, its figures, and whether overfitting is named."""

import re

import pytest

from rmjax.training.experiment import train
from rmjax.training.report import describe_overfitting


def lines(losses, every=1):
    return [{"step": (i + 1) * every, "loss": loss} for i, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("training", "validation", "words"),
    [
        ([0.7, 0.5, 0.3, 0.1], [0.6, 0.5, 0.55, 0.7], "Overfitting: .* rose from 0.5000 at step 2 to 0.7000 at step 4"),
        ([0.7, 0.6, 0.5, 0.5], [0.6, 0.55, 0.5, 0.505], "No overfitting: .* within 2% of its minimum 0.5000 .step 3"),
        ([0.5, 0.5, 0.9, 0.9], [0.6, 0.5, 0.7, 0.9], "Not converged: .* the training loss did not fall"),
        ([0.5], [0.6], "less than twice"),
    ],
)
def test_overfitting_is_named(training, validation, words):
    assert re.search(words, describe_overfitting(lines(training), lines(validation)))


def test_a_run_has_a_report(tiny, tmp_path):
    tiny.train.steps, tiny.evaluation.every = 4, 2
    train(tiny, tmp_path / "run", log=lambda line: None, progress=False)
    page = (tmp_path / "run" / "training_report.html").read_text()
    assert "<h1>Training</h1>" in page
    for text in ("random initialization", "Learning curves", "overfit", "tokens per second", "accuracy_ceiling"):
        assert text in page, text
    assert page.count("<svg") == 1
    assert "http" not in page.replace("http-equiv", "")
