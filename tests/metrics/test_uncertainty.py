"""Metrics of uncertainty against hand-computed values."""

import numpy as np
import pytest

from rmjax.data.schema import Edge
from rmjax.metrics.bootstrap import Bootstrap
from rmjax.metrics.edges import edge_table
from rmjax.metrics.uncertainty import uncertainty_metrics


def metrics(rewards, std, **options):
    table = edge_table([np.array(pair) for pair in rewards], [(Edge(0, 1),)] * len(rewards))
    return uncertainty_metrics(table, np.array(std, np.float64), Bootstrap(np.arange(len(rewards))), **options)


def test_table_of_confidence_and_correctness():
    found = metrics([(3, 0), (0, 3), (1, 0), (0, 1)], [(1, 1), (1, 1), (1, 1), (2, 0)])
    cells = [found[name] for name in ("confident_right", "confident_wrong", "unsure_right", "unsure_wrong")]
    assert cells == [0.25, 0.25, 0.25, 0.25]
    assert found["confident_accuracy"] == found["unsure_accuracy"] == 0.5
    assert metrics([(3, 0), (1, 0)], [(1, 1), (1, 1)], beta=0.1)["confident_right"] == 1


def test_bound_calibration_by_hand():
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    # Winner first: lower bound sigmoid(2 - 1); loser first: sigmoid(-2 - 1), in another bin, never right.
    found = metrics([(2, 0)] * 3, [(0.5, 0.5)] * 3)
    assert found["bound_calibration_lower"] == pytest.approx((sigmoid(-3) - 0) / 2)  # 0.73 is below the accuracy, 1
    assert found["bound_calibration_upper"] == pytest.approx((1 - sigmoid(3)) / 2)
    # Wrong and certain: the lower bound of the loser's winning exceeds how often it does.
    found = metrics([(0, 2)] * 3, [(0, 0)] * 3)
    assert found["bound_calibration_lower"] == pytest.approx(sigmoid(2) / 2)
    assert found["bound_calibration_upper"] == pytest.approx((1 - sigmoid(-2)) / 2)


def test_wide_bounds_hold():
    found = metrics([(1, 0), (0, 1)] * 10, [(20, 20)] * 20)
    assert found["bound_calibration_lower"] < 1e-9
    assert found["bound_calibration_upper"] < 1e-9


def test_disagreement_predicts_errors():
    rng = np.random.default_rng(0)
    std = rng.uniform(0.1, 3, size=(400, 2))
    margin = 1 + rng.normal(size=400) * std.sum(axis=1)
    found = metrics([(m, 0) for m in margin], std)
    wrong, spread = margin < 0, std.sum(axis=1)
    pairs = spread[wrong][:, None] - spread[~wrong][None]
    assert found["error_auc_std"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert found["error_auc_std_low"] < found["error_auc_std"] < found["error_auc_std_high"]
