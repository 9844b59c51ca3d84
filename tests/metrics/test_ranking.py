import itertools

import jax
import numpy as np
import pytest

from rmjax.data.schema import Edge
from rmjax.metrics.pairs import pair_metrics
from rmjax.metrics.ranking import correctness, ranking_accuracy_sums

MARGIN = np.array([1.0, -2.0, 0.0, 3.0], np.float32)
WEIGHT = np.array([1 / 6, 1 / 6, 1 / 6, 0.5], np.float32)
TARGET = np.array([1.0, 0.8, 1.0, 0.5], np.float32)  # the last edge is a tie of the data


@pytest.mark.parametrize("compute", [ranking_accuracy_sums, jax.jit(ranking_accuracy_sums)], ids=["NumPy", "jit"])
def test_ties_of_rewards_count_half_and_ties_of_the_data_nothing(compute):
    correct, total = compute(MARGIN, WEIGHT, TARGET)
    assert correct == pytest.approx((1 + 0 + 0.5) / 6)
    assert total == pytest.approx(3 / 6)
    assert correct.dtype == total.dtype == np.float32


def test_the_correctness_of_both_orders_adds_up_to_one():
    np.testing.assert_array_equal(correctness(MARGIN) + correctness(-MARGIN), 1)


def test_sums_in_float64_are_those_of_the_formula_bit_for_bit():
    rng = np.random.default_rng(0)
    margin = rng.normal(size=6).round(1)
    weight = np.full(6, np.float32(1 / 6)).astype(np.float64)
    target = np.array([1, 0.5, 1, 1, 0.7, 1], np.float32)
    decided = np.where(target == 0.5, 0.0, weight)
    expected = (np.sum(decided * (0.5 + 0.5 * np.sign(margin))), np.sum(decided))
    assert ranking_accuracy_sums(margin, weight, target) == expected


def test_pair_metrics_use_the_same_accuracy():
    rewards = [np.array([0.3, 0.1, 0.1, 0.7])]
    order = itertools.combinations(range(4), 2)
    edges = [Edge(i, j, weight=1 / 6, target=0.5 if (i, j) == (0, 3) else 1.0) for i, j in order]
    columns = ([rewards[0][e.winner] - rewards[0][e.loser], e.weight, e.target] for e in edges)
    correct, total = ranking_accuracy_sums(*np.array(list(columns)).T)
    assert pair_metrics(rewards, [edges], [np.nan])["accuracy"] == pytest.approx(correct / total, rel=1e-15)
