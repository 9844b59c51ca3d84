import hashlib
import json

import numpy as np
import pytest

from rmjax.core.config import default
from rmjax.data.records import synthetic


def features(response, direction, order):
    """Returns counts of digits, and these times the direction; with `order`, also counts of adjacent pairs."""
    counts = np.bincount(response, minlength=10)
    parts = [counts, counts * direction]
    if order:
        pairs = np.bincount(10 * response[:-1] + response[1:], minlength=100)
        parts += [pairs, pairs * direction]
    return np.concatenate(parts).astype(float)


def accuracy(order):
    """Returns the validation accuracy of a logistic regression on differences of features."""

    def load(split, size):
        rows = []
        for item in synthetic.comparisons(split, size):
            direction = 1 if item.record["prompt"] in ("Count up:", "Rising:") else -1
            chosen, rejected = (np.array(list(map(int, item.record[key].strip()))) for key in ("chosen", "rejected"))
            rows.append(features(chosen, direction, order) - features(rejected, direction, order))
        return np.array(rows)

    train, test = load("train", 3000), load("validation", 1000)
    weights = np.zeros(train.shape[1])
    for _ in range(300):
        weights += 1.0 * train.T @ (1 / (1 + np.exp(train @ weights))) / len(train)
    margin = test @ weights
    return np.mean((margin > 0) + 0.5 * (margin == 0))


def test_token_order_is_needed_to_rank_the_built_in_pairs():
    ceiling = np.mean([item.ceiling for item in synthetic.comparisons("validation", 1000)])
    assert 0.9 < ceiling < 0.96
    assert accuracy(order=False) == 0.5  # both responses hold the same digits
    assert accuracy(order=True) > 0.9 * ceiling


def test_ceiling_equals_the_accuracy_of_the_gold_reward():
    items = synthetic.comparisons("train", 4000)
    right = []
    for item in items:
        direction = "up" if item.record["prompt"] in ("Count up:", "Rising:") else "down"
        chosen, rejected = (
            synthetic.gold(np.array(list(map(int, item.record[key].strip()))), direction)
            for key in ("chosen", "rejected")
        )
        assert chosen != rejected
        right.append(chosen > rejected)
    assert abs(np.mean(right) - np.mean([item.ceiling for item in items])) < 4 * 0.5 / len(items) ** 0.5


def test_splits_differ_and_are_reproducible():
    first, again = (synthetic.comparisons("train", 50) for _ in range(2))
    assert [item.record for item in first] == [item.record for item in again]
    assert first[0].record != synthetic.comparisons("validation", 1)[0].record


# SHA-256 of the conversations of the training split: its comparisons never change, so that metrics stay comparable.
TRAINING = {
    "pairs": "a3552a31601700d4",
    "kwise": "301e8db4dfabf0f0",
    "regression": "29ed830245cffe45",
    "process": "d1935501668f1a7d",
}


@pytest.mark.parametrize("format", TRAINING)
def test_splits_share_no_comparison_at_their_default_sizes(format):
    data = default().data
    training = synthetic.comparisons("train", data.synthetic_train, format)
    validation = synthetic.comparisons("validation", data.synthetic_validation, format)
    keys = [{tuple(sorted(item.conversations)) for item in split} for split in (training, validation)]
    assert not keys[0] & keys[1]
    text = json.dumps([item.conversations for item in training])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == TRAINING[format]
