"""Bootstrap intervals: the same as resampling rows one by one, over whole clusters."""

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.metrics.bootstrap import Bootstrap, percentiles, with_interval

CLUSTERS = np.array([3, 3, 1, 2, 2, 2, 0, 1])


def resampled_rows(clusters, resamples, seed=0):
    """Yields the rows of each resample, each repeated as often as its cluster is drawn."""
    rng, count = np.random.default_rng(seed), len(set(clusters.tolist()))
    for drawn in rng.integers(count, size=(resamples, count)):
        yield np.concatenate([np.flatnonzero(clusters == c) for c in drawn])


def test_the_interval_of_a_ratio_is_that_of_repeated_rows():
    rng = np.random.default_rng(1)
    numerator, denominator = rng.random(8), rng.random(8) + 0.5
    values = [numerator[rows].sum() / denominator[rows].sum() for rows in resampled_rows(CLUSTERS, 1000)]
    expected = tuple(np.percentile(values, [2.5, 97.5]))
    bootstrap = Bootstrap(CLUSTERS)
    assert bootstrap.clusters == 4
    assert bootstrap.ratio(numerator, denominator) == pytest.approx(expected)
    both = bootstrap.ratios(np.stack([numerator, denominator], 1), np.stack([denominator, denominator], 1))
    assert both == [pytest.approx(expected), pytest.approx((1, 1))]


def test_weights_are_the_numbers_of_repetitions():
    bootstrap = Bootstrap(CLUSTERS, resamples=50, seed=7)
    weights = np.stack([np.bincount(rows, minlength=8) for rows in resampled_rows(CLUSTERS, 50, seed=7)])
    values = np.arange(8.0)
    np.testing.assert_allclose(bootstrap.samples(lambda w: w @ values), weights @ values)
    np.testing.assert_allclose(bootstrap.sums(values[:, None])[:, 0], weights @ values)


def test_blocks_do_not_change_the_resamples(monkeypatch):
    values = np.random.default_rng(0).normal(size=8)
    whole = Bootstrap(CLUSTERS).ratio(values, np.ones(8))
    monkeypatch.setattr("rmjax.metrics.bootstrap._BLOCK", 24)
    assert Bootstrap(CLUSTERS).ratio(values, np.ones(8)) == pytest.approx(whole, rel=1e-12)


def test_rows_of_one_prompt_are_no_independent_evidence():
    right = np.random.default_rng(0).random(50) < 0.7
    alone = Bootstrap(np.arange(50)).ratio(right.astype(float), np.ones(50))
    copied = np.repeat(right.astype(float), 20)
    assert Bootstrap(np.repeat(np.arange(50), 20)).ratio(copied, np.ones(1000)) == pytest.approx(alone)
    low, high = Bootstrap(np.arange(1000)).ratio(copied, np.ones(1000))  # as if they were
    assert high - low < 0.35 * (alone[1] - alone[0])


def test_the_interval_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        effects = rng.normal(size=60)
        values = np.repeat(effects, 3) + rng.normal(size=180)
        low, high = Bootstrap(np.repeat(np.arange(60), 3), resamples=300).ratio(values, np.ones(180))
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 0.98


def test_resamples_without_a_value_are_left_out():
    assert percentiles(np.array([np.nan, 1.0, np.inf])) == (1.0, 1.0)
    assert with_interval("x", 0.5, percentiles(np.array([np.nan]))) == {"x": 0.5}
    with pytest.raises(InputError, match="no rows"):
        Bootstrap([])
