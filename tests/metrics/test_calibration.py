"""Calibration metrics and the best temperature."""

import numpy as np
import pytest
import scipy.special

from rmjax.data.schema import Edge
from rmjax.metrics.bootstrap import Bootstrap
from rmjax.metrics.calibration import calibration_metrics, fit_temperature, log_loss, temperature
from rmjax.metrics.edges import edge_table


def make_table(margins):
    return edge_table([np.array([margin, 0.0]) for margin in margins], [(Edge(0, 1),)] * len(margins))


def drawn(size, scale, seed=0):
    """A table of margins whose labels follow sigmoid(margin / scale)."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(size=size) * 2 * scale
    return make_table(np.where(rng.random(size) < scipy.special.expit(margins / scale), margins, -margins))


def test_errors_of_a_hand_computed_example():
    logit = scipy.special.logit
    table = make_table([logit(0.92), logit(0.92), -logit(0.92), logit(0.61)])
    found = calibration_metrics(table, Bootstrap(np.arange(4)))
    assert found["calibration_error"] == pytest.approx(0.75 * (0.92 - 2 / 3) + 0.25 * 0.39)
    assert found["calibration_error_max"] == pytest.approx(0.39)
    assert found["brier"] == pytest.approx((2 * 0.08**2 + 0.92**2 + 0.39**2) / 4)
    for name in ("calibration_error", "calibration_error_max", "brier"):
        assert found[f"{name}_low"] <= found[f"{name}_high"]


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_the_temperature_of_the_labels_is_found(scale):
    table = drawn(4000, scale)
    found = temperature(table, Bootstrap(table.comparison))
    assert found.metrics["temperature_low"] < scale < found.metrics["temperature_high"]
    assert found.value == pytest.approx(scale, rel=0.1)
    if scale != 1:
        assert found.metrics["temperature_gain_low"] > 0
    else:
        assert abs(found.metrics["temperature_gain"]) < 1e-3


def test_the_interval_is_that_of_refitted_resamples():
    table = drawn(300, 1.0, seed=1)
    found = temperature(table, Bootstrap(table.comparison)).metrics
    rng = np.random.default_rng(1)
    fits = []
    for _ in range(200):
        rows = rng.integers(300, size=300)
        fits.append(fit_temperature(table.margin[rows], table.target[rows], table.weight[rows]))
    low, high = np.percentile(fits, [2.5, 97.5])
    assert (found["temperature_low"], found["temperature_high"]) == pytest.approx((low, high), rel=0.15)


def test_the_fit_minimizes_the_loss_and_stays_finite():
    table = drawn(200, 3.0)
    best = fit_temperature(table.margin, table.target, table.weight)
    loss = lambda value: log_loss(table.margin / value, table.target).mean()
    assert loss(best) < min(loss(best * 1.02), loss(best / 1.02))
    separable = fit_temperature(np.array([1.0, 2.0]), np.ones(2), np.ones(2))
    assert 0 < separable < 1e-3
    assert fit_temperature(np.zeros(2), np.ones(2), np.ones(2)) == 1
    only_prompt = temperature(make_table([1.0, -2.0]), Bootstrap([0, 0])).metrics
    assert only_prompt["temperature_gain"] == 0
