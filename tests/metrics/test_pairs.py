import math

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.data.schema import Edge
from rmjax.metrics.calibration import calibration
from rmjax.metrics.edges import edge_table
from rmjax.metrics.pairs import accuracy_interval, pair_metrics
from rmjax.metrics.ranking import correctness

PAIR = (Edge(0, 1),)


def rewards(*pairs):
    return [np.array(pair, np.float32) for pair in pairs]


def test_a_small_example_computed_by_hand():
    found = pair_metrics(rewards((2, 1), (0, 3), (1, 1), (4, 0)), [PAIR] * 4, [0.9, 0.8, 1.0, 0.7])
    assert found["accuracy"] == pytest.approx(2.5 / 4)  # a tie counts 0.5
    assert found["margin"] == pytest.approx((1 - 3 + 0 + 4) / 4)
    assert found["loss"] == pytest.approx(np.mean([math.log1p(math.exp(-d)) for d in (1, -3, 0, 4)]))
    assert found["chosen_reward_mean"] == pytest.approx(7 / 4)
    assert found["rejected_reward_mean"] == pytest.approx(5 / 4)
    assert found["reward_mean"] == pytest.approx(12 / 8)
    assert found["reward_std"] == pytest.approx(np.std([2, 1, 0, 3, 1, 1, 4, 0]))
    assert found["accuracy_ceiling"] == pytest.approx(0.85)


def test_the_loss_of_equal_rewards_is_ln_2():
    found = pair_metrics(rewards((0, 0), (5, 5)), [PAIR] * 2, [math.nan] * 2)
    assert found["loss"] == pytest.approx(math.log(2))
    assert found["accuracy"] == 0.5
    assert "accuracy_ceiling" not in found


def test_swapped_preferences_give_one_minus_the_accuracy():
    values = [np.random.default_rng(i).normal(size=2) for i in range(40)]
    ceilings = [math.nan] * 40
    one, other = (pair_metrics(values, [(edge,)] * 40, ceilings) for edge in (Edge(0, 1), Edge(1, 0)))
    assert one["accuracy"] == pytest.approx(1 - other["accuracy"])


def test_edges_are_averaged_by_their_weights():
    edges = [(Edge(0, 1, weight=3.0), Edge(1, 2), Edge(2, 0, weight=0.0))]
    found = pair_metrics([np.array([3.0, 1.0, 2.0])], edges, [math.nan])
    assert found["accuracy"] == pytest.approx(3 / 4)
    assert found["margin"] == pytest.approx((3 * 2 - 1) / 4)


def test_extreme_margins_stay_finite():
    found = pair_metrics(rewards((0, 3000), (3000, 0)), [PAIR] * 2, [math.nan] * 2)
    assert found["loss"] == pytest.approx(1500)


def test_the_interval_is_that_of_a_binomial_proportion():
    rng = np.random.default_rng(0)
    values = [np.array([1.0, 0.0]) if right else np.array([0.0, 1.0]) for right in rng.random(1000) < 0.8]
    table = edge_table(values, [PAIR] * 1000)
    low, high = accuracy_interval(table)
    mean = correctness(table.margin).mean()
    half = 1.96 * math.sqrt(mean * (1 - mean) / 1000)
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.004)
    assert accuracy_interval(table) == (low, high)


def test_a_calibrated_models_accuracy_equals_its_confidence():
    rng = np.random.default_rng(0)
    margins = rng.normal(size=20000) * 2
    wins = rng.random(20000) < 1 / (1 + np.exp(-margins))
    values = [np.array([d, 0.0]) if win else np.array([0.0, d]) for d, win in zip(margins, wins, strict=True)]
    confidence, accuracy, weight = calibration(edge_table(values, [PAIR] * 20000))
    assert weight.sum() == 20000
    np.testing.assert_allclose(confidence, accuracy, atol=0.04)


def test_data_without_preferences_is_an_error():
    with pytest.raises(InputError, match="known preference"):
        edge_table(rewards((1, 2)), [()])
