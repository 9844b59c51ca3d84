"""Two models on the same edges, and rewards against lengths, on hand-computed examples."""

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.data.schema import Edge
from rmjax.metrics.comparison import compare_edges, compare_samples, mcnemar
from rmjax.metrics.edges import edge_table
from rmjax.metrics.labels import attribute_samples
from rmjax.metrics.lengths import length_metrics

PAIR = (Edge(0, 1),)


def make_table(margins, edges=PAIR):
    return edge_table([np.array([margin, 0.0]) for margin in margins], [edges] * len(margins))


def test_counts_difference_and_test():
    one, other = make_table([1, 1, 1, 1, -1, 0]), make_table([1, -1, -1, -2, 1, -1])
    found = compare_edges(one, other, one.comparison)
    counts = [found[name] for name in ("both_right", "only_first_right", "only_second_right", "both_wrong")]
    assert counts == [1, 3, 1, 1]
    assert found["accuracy"] == pytest.approx(4.5 / 6)
    assert found["accuracy_difference"] == pytest.approx((4.5 - 2) / 6)
    assert found["accuracy_difference_low"] < found["accuracy_difference"] < found["accuracy_difference_high"]
    assert found["agreement"] == pytest.approx(1 / 6)
    assert found["mcnemar_p"] == pytest.approx(2 * (1 + 5) / 2**5)  # 4 against 1: the tie is half right
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1
    same = compare_edges(one, one, one.comparison)
    assert (same["accuracy_difference_low"], same["accuracy_difference_high"], same["mcnemar_p"]) == (0, 0, 1)


def test_the_interval_is_paired_and_prompts_count_once():
    rng = np.random.default_rng(0)
    margins = rng.normal(size=400)
    better = np.where(rng.random(400) < 0.04, np.abs(margins), margins)
    one, other = make_table(better), make_table(margins)
    found = compare_edges(one, other, one.comparison)
    assert found["accuracy_difference_low"] > 0
    assert found["accuracy_low"] < found["accuracy_other_high"]  # the intervals of each overlap
    prompts = compare_edges(one, other, one.comparison // 50)
    assert prompts["accuracy_difference"] == found["accuracy_difference"]
    assert prompts["mcnemar_p"] >= 2 / 2**8  # eight prompts


def test_differences_are_those_of_the_same_resamples():
    labels, prompts = np.array([[1.0], [2.0], [4.0], [0.0], [3.0]]), np.array([0, 0, 1, 2, 3])
    one, other = (np.add(labels, errors) for errors in ([[0], [1], [0], [2], [1]], [[1], [1], [1], [0], [-1]]))
    found = compare_samples(*(attribute_samples(x, labels, ("a",), prompts) for x in (one, other)))
    assert (found["mse"], found["mse_other"], found["mse_difference"]) == pytest.approx((6 / 5, 4 / 5, 2 / 5))
    of_prompts, counts = np.array([-1, -1, 4, 0]), np.array([2, 1, 1, 1])  # sums of differences of squared errors
    drawn = np.random.default_rng(0).integers(4, size=(1000, 4))  # the resamples of `Bootstrap`
    expected = np.percentile(of_prompts[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    assert [found["mse_difference_low"], found["mse_difference_high"]] == pytest.approx(expected)


def test_other_edges_are_an_error():
    with pytest.raises(InputError, match="edges of the two models differ"):
        compare_edges(make_table([1, 2]), make_table([1, 2], (Edge(1, 0),)), np.arange(2))


def test_length_bias():
    rewards = [np.array(values, float) for values in ((3, 1), (1, 3), (2, 1), (1, 1))]
    lengths = [np.array(values) for values in ((9, 4), (2, 8), (5, 5), (1, 3))]
    table = edge_table(rewards, [PAIR] * 4)
    found = length_metrics(table, rewards, lengths, np.arange(4))
    assert found["accuracy_longer_chosen"] == 1
    assert found["accuracy_shorter_chosen"] == 0.25
    assert found["longer_chosen"] == pytest.approx(1 / 3)
    assert found["longer_preferred"] == pytest.approx(2.5 / 3)
    assert found["reward_length_spearman_within"] == pytest.approx((1 + 1 + 0) / 3)
    assert 0 < found["reward_length_spearman"] < 1
    assert found["reward_length_spearman_low"] < found["reward_length_spearman_high"]
