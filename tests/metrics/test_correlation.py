"""Weighted correlations against SciPy on repeated rows, and correlations within prompts against SciPy's."""

import numpy as np
import pytest
import scipy.stats

from rmjax.metrics.correlation import auc, kendall_within, pearson, spearman, spearman_within


@pytest.fixture
def rows():
    """Values with ties x and y [30], and weights [4, 30] among which are zeros."""
    rng = np.random.default_rng(0)
    x, noise = rng.integers(6, size=30).astype(float), rng.normal(size=30)
    return x, np.round(x + 2 * noise), rng.integers(4, size=(4, 30)).astype(float)


def test_weighted_correlations_are_those_of_repeated_rows(rows):
    x, y, weights = rows
    for found, reference in (
        (pearson(x, y, weights), scipy.stats.pearsonr),
        (spearman(x, y)(weights), scipy.stats.spearmanr),
    ):
        for value, weight in zip(found, weights.astype(int), strict=True):
            assert value == pytest.approx(reference(np.repeat(x, weight), np.repeat(y, weight)).statistic)
    assert pearson(np.full(30, 0.1), y, weights).tolist() == [0, 0, 0, 0]


def test_the_area_is_the_share_of_pairs_in_order(rows):
    x, y, weights = rows
    positive = y > 3
    for value, weight in zip(auc(x, positive)(weights), weights.astype(int), strict=True):
        above, below = np.repeat(x[positive], weight[positive]), np.repeat(x[~positive], weight[~positive])
        assert value == pytest.approx((np.sign(above[:, None] - below) / 2 + 0.5).mean())
    assert np.isnan(auc(x, np.ones(30, bool))(weights)).all()


def test_correlations_within_prompts_are_scipys():
    rng = np.random.default_rng(0)
    x = [rng.integers(5, size=k).astype(float) for k in (3, 4, 4, 9, 3, 40)]
    y = [np.round(each + rng.normal(size=len(each))) for each in x]
    for found, reference in ((kendall_within, scipy.stats.kendalltau), (spearman_within, scipy.stats.spearmanr)):
        expected = [reference(a, b).statistic for a, b in zip(x, y, strict=True)]
        np.testing.assert_allclose(found(x, y), expected)
        assert np.isnan(found([np.array([1.0, 2.0])], [np.zeros(2)])).all()  # no order to find
        assert found([np.zeros(2)], [np.array([1.0, 2.0])]).tolist() == [0]  # none found
