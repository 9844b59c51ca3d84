"""Best-of-N against the mean over all subsets; gold values from edges."""

import itertools

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.data.records.formats.preferences import ranked_edges
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Edge
from rmjax.metrics.best_of_n import best_of_n, curve_sizes, top_one
from rmjax.metrics.gold import gold_values


def brute_force(proxy, gold, size):
    """The mean over all subsets of the gold value of the best, of tied ones their mean."""
    subsets = [list(subset) for subset in itertools.combinations(range(len(proxy)), size)]
    return np.mean([gold[subset][proxy[subset] == proxy[subset].max()].mean() for subset in subsets])


@pytest.mark.parametrize("ties", [False, True])
def test_the_estimator_is_the_mean_over_all_subsets(ties):
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=8), rng.normal(size=8)
    if ties:
        proxy = np.round(proxy)
        assert len(set(proxy)) < 6
    expected = [brute_force(proxy, gold, size) for size in range(1, 9)]
    np.testing.assert_allclose(best_of_n(proxy, gold, range(1, 9)), expected)


def test_many_responses_do_not_overflow():
    values = np.arange(2000.0)
    found = best_of_n(values, values, [1, 1000, 2000])
    np.testing.assert_allclose(found, [999.5, 2001 * 1000 / 1001 - 1, 1999], rtol=1e-9)
    with pytest.raises(InputError, match="best of 2001 of 2000 responses"):
        best_of_n(values, values, [2001])


def test_sizes_and_the_first_choice():
    assert [curve_sizes(k) for k in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]
    assert top_one(np.array([1.0, 1.0, 0.0]), np.array([5.0, 5.0, 1.0])) == 1
    assert top_one(np.array([1.0, 1.0, 1.0]), np.array([5.0, 2.0, 1.0])) == pytest.approx(1 / 3)


def test_gold_values_are_the_scores_or_ranks_of_the_record():
    scores = [2.5, 0.5, 2.5, 4.0]
    assert gold_values(ranked_edges(scores, True, ReadOptions()), 4).tolist() == [2.0, 0.0, 2.0, 3.5]
    assert gold_values(ranked_edges(scores, True, ReadOptions(ties="half")), 4).tolist() == [2.0, 0.0, 2.0, 3.5]
    assert gold_values(ranked_edges([1, 3, 2], False, ReadOptions()), 3).tolist() == [2, 0, 1]
    assert gold_values([Edge(0, 2), Edge(1, 2)], 3).tolist() == [1, 1, 0]  # one rejected response
    assert gold_values([Edge(0, 1), Edge(1, 2), Edge(2, 0)], 3) is None  # a cycle
    assert gold_values([Edge(0, 1), Edge(1, 2)], 3) is None  # an edge is missing
    assert gold_values([], 3) is None
