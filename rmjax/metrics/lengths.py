"""Relation of rewards to the lengths of responses.

Axis letters: N responses, E edges, K responses of a comparison.
"""

from collections.abc import Sequence

import numpy as np

from rmjax.metrics.bootstrap import Bootstrap, percentiles, with_interval
from rmjax.metrics.correlation import spearman, spearman_within
from rmjax.metrics.edges import EdgeTable
from rmjax.metrics.ranking import correctness


def length_metrics(
    table: EdgeTable, rewards: Sequence[np.ndarray], lengths: Sequence[np.ndarray], prompts: np.ndarray
) -> dict[str, float]:
    """Returns metrics of the rewards of responses against their lengths, with intervals.

    `accuracy_longer_chosen`, `accuracy_shorter_chosen`: accuracy on the edges whose better response is the longer, or
    the shorter one; a model that prefers long responses is good at the first at the cost of the second.
    `longer_chosen`, `longer_preferred`: share of the edges, by weight, where the longer response is better by the
    labels, and has the higher reward (ties count half); of the edges whose responses differ in length.
    `reward_length_spearman`: rank correlation of reward and length over all responses.
    `reward_length_spearman_within`: its mean over comparisons, within each; of those whose responses differ in length.

    Args:
      rewards, lengths: of each comparison, [K], numbers and tokens.
      prompts: int [comparisons].
    """
    difference = edge_lengths(table, lengths)
    difference = difference[:, 0] - difference[:, 1]
    bootstrap, right = Bootstrap(prompts[table.comparison]), correctness(table.margin)
    longer = np.where(difference > 0, right, 1 - right)
    ratios = {
        "accuracy_longer_chosen": (right, difference > 0),
        "accuracy_shorter_chosen": (right, difference < 0),
        "longer_chosen": (difference > 0, difference != 0),
        "longer_preferred": (longer, difference != 0),
    }
    found: dict[str, float] = {}
    for name, (values, members) in ratios.items():
        weight = table.weight * members
        if weight.sum():
            found |= with_interval(
                name, (weight * values).sum() / weight.sum(), bootstrap.ratio(weight * values, weight)
            )
    x, y = np.concatenate(rewards).astype(np.float64), np.concatenate(lengths).astype(np.float64)
    overall = spearman(x, y)
    all_rows = Bootstrap(np.repeat(prompts, [len(each) for each in rewards]))
    value = overall(np.ones((1, len(x))))[0]
    found |= with_interval("reward_length_spearman", value, percentiles(all_rows.samples(overall)))
    within = spearman_within(rewards, lengths)
    if (known := ~np.isnan(within)).any():
        interval = Bootstrap(prompts[known]).ratio(within[known], np.ones(known.sum()))
        found |= with_interval("reward_length_spearman_within", within[known].mean(), interval)
    return found


def edge_lengths(table: EdgeTable, lengths: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the lengths of winner and loser of each edge, int64 [E, 2]; `lengths` [K] are of each comparison."""
    return np.array([lengths[i][ends] for i, ends in zip(table.comparison, table.ends, strict=True)])
