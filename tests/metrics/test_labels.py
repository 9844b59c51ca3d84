import numpy as np
import pytest
import scipy.stats

from rmjax.metrics.labels import attribute_metrics, label_metrics, step_metrics


def test_correlations_equal_scipys_over_present_labels():
    rng = np.random.default_rng(0)
    rewards, labels = rng.normal(size=(40, 2)), rng.integers(0, 5, (40, 2)).astype(float)
    labels[::3, 1] = np.nan
    found = attribute_metrics(rewards, labels, ("a", "b"))
    known = ~np.isnan(labels[:, 1])
    assert found["pearson/b"] == pytest.approx(scipy.stats.pearsonr(rewards[known, 1], labels[known, 1])[0])
    assert found["spearman/b"] == pytest.approx(scipy.stats.spearmanr(rewards[known, 1], labels[known, 1])[0])
    assert found["mse/a"] == pytest.approx(np.mean((rewards[:, 0] - labels[:, 0]) ** 2))
    assert found["pearson"] == pytest.approx((found["pearson/a"] + found["pearson/b"]) / 2)


def test_the_correlation_with_a_constant_is_zero():
    assert attribute_metrics(np.ones((3, 1)), np.arange(3.0)[:, None], ("a",))["pearson"] == 0


def test_step_metrics_of_a_small_example():
    # One right step above one of two wrong ones, tied with the other: (1 + 0.5) / 2.
    found = step_metrics(np.array([1.0, 1.0, -1.0, 5.0, 5.0]), np.array([1, 0, 0, np.nan, 0.5]))
    assert found == {"accuracy": pytest.approx(2 / 3), "auc": pytest.approx(0.75)}
    assert step_metrics(np.zeros(2), np.array([1.0, 1.0])) == {"accuracy": 0.5}
    assert step_metrics(np.zeros(1), np.array([np.nan])) == {}


def test_label_metrics_are_those_of_all_comparisons_together():
    rng = np.random.default_rng(0)
    rewards = [rng.normal(size=(count, 2)) for count in (1, 3, 2)]
    labels = [rng.integers(0, 2, (len(each), 2)).astype(float) for each in rewards]
    x, y = np.concatenate(rewards), np.concatenate(labels)
    assert label_metrics(rewards, labels, ("a", "b"), steps=False) == attribute_metrics(x, y, ("a", "b"))
    assert label_metrics(rewards, labels, ("a", "b"), steps=True) == step_metrics(x[:, 0], y[:, 0])
    assert label_metrics([], [], ("a",), steps=False) == {}
    assert label_metrics(rewards, [each * np.nan for each in labels], ("a", "b"), steps=False) == {}
