"""Metrics of rewards on labelled comparisons, in float64 on the host.

Axis letters: C comparisons, E edges of all comparisons.
"""

from collections.abc import Sequence

import numpy as np

from rmjax.data.schema import Edge
from rmjax.metrics.calibration import calibration
from rmjax.metrics.edges import EdgeTable, edge_table

_RESAMPLES = 1000  # of the bootstrap; its own error on a bound is then a few percent of the interval


def pair_metrics(
    rewards: Sequence[np.ndarray], edges: Sequence[Sequence[Edge]], ceilings: Sequence[float]
) -> dict[str, float]:
    """Returns the metrics of C comparisons: the names and definitions of training's, over the whole set.

    loss = mean of -[p log sigmoid(d) + (1 - p) log sigmoid(-d)], d = r_w - r_l, over edges with their weights and
    targets p; accuracy counts a tie as 0.5. Further
    `accuracy_low` and `accuracy_high`, a 95 % bootstrap interval over comparisons; `calibration_error`;
    `accuracy_ceiling`, where it is known of every comparison (`ceilings`, NaN where not).
    """
    table = edge_table(rewards, edges)
    mean = lambda values: float(np.average(values, weights=table.weight))
    every = np.concatenate(rewards).astype(np.float64)
    low, high = accuracy_interval(table)
    confidence, accuracy, weight = calibration(table)
    metrics = {
        "accuracy": mean(table.correct),
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": mean(
            table.target * np.logaddexp(0.0, -table.margin) + (1 - table.target) * np.logaddexp(0.0, table.margin)
        ),
        "margin": mean(table.margin),
        "reward_mean": float(every.mean()),
        "reward_std": float(every.std()),
        "chosen_reward_mean": mean(table.winner),
        "rejected_reward_mean": mean(table.loser),
        "calibration_error": float(np.average(np.abs(confidence - accuracy), weights=weight)),
    }
    if not np.isnan(ceilings).any():
        metrics["accuracy_ceiling"] = float(np.mean(ceilings))
    return metrics


def accuracy_interval(table: EdgeTable, seed: int = 0) -> tuple[float, float]:
    """Returns the 2.5 and 97.5 percentiles of accuracy when the comparisons are drawn again with replacement.

    Comparisons are drawn, not edges: the edges of one comparison are not independent.
    """
    _, index = np.unique(table.comparison, return_inverse=True)
    right = np.bincount(index, weights=table.weight * table.correct)
    total = np.bincount(index, weights=table.weight)
    rng, count = np.random.default_rng(seed), len(total)
    found = np.empty(_RESAMPLES)
    for resample in range(_RESAMPLES):
        drawn = rng.integers(count, size=count)
        found[resample] = right[drawn].sum() / total[drawn].sum()
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)
