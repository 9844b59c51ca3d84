import numpy as np
import pytest
import scipy.stats

from rmjax.metrics.attributes import label_metrics
from rmjax.metrics.steps import step_metrics
from rmjax.metrics.subsets import subsets


def test_correlations_are_scipys_over_present_labels():
    rng = np.random.default_rng(0)
    rewards, labels = rng.normal(size=(40, 2)), rng.integers(0, 5, (40, 2)).astype(float)
    labels[::3, 1] = np.nan
    found = label_metrics(rewards, labels, ("a", "b"))
    known = ~np.isnan(labels[:, 1])
    assert found["pearson/b"] == pytest.approx(scipy.stats.pearsonr(rewards[known, 1], labels[known, 1])[0])
    assert found["spearman/b"] == pytest.approx(scipy.stats.spearmanr(rewards[known, 1], labels[known, 1])[0])
    assert found["mse/a"] == pytest.approx(np.mean((rewards[:, 0] - labels[:, 0]) ** 2))
    assert found["pearson"] == pytest.approx((found["pearson/a"] + found["pearson/b"]) / 2)


def test_what_does_not_vary_correlates_with_nothing():
    assert label_metrics(np.ones((3, 1)), np.arange(3.0)[:, None], ("a",))["pearson"] == 0


def test_steps_by_hand():
    # One right step above one of two wrong ones, tied with the other: (1 + 0.5) / 2.
    found = step_metrics(np.array([1.0, 1.0, -1.0, 5.0, 5.0]), np.array([1, 0, 0, np.nan, 0.5]))
    assert found == {"accuracy": pytest.approx(2 / 3), "auc": pytest.approx(0.75)}
    assert step_metrics(np.zeros(2), np.array([1.0, 1.0])) == {"accuracy": 0.5}
    assert step_metrics(np.zeros(1), np.array([np.nan])) == {}


def test_a_set_holds_what_its_subsets_hold():
    assert subsets(["rb/chat", "", "rb", "rb/math", "rb/chat"]) == {
        "rb": [0, 2, 3, 4],
        "rb/chat": [0, 4],
        "rb/math": [3],
    }
