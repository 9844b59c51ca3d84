"""Metrics of rewards on preferences, in float64 on the host."""

from collections.abc import Sequence

import numpy as np

from rmjax.data.schema import Edge
from rmjax.metrics.calibration import calibration
from rmjax.metrics.edges import EdgeTable, edge_table
from rmjax.metrics.ranking import correctness, ranking_accuracy_sums

_RESAMPLES = 1000  # of the bootstrap; the standard error of a bound is then a few percent of the interval


def pair_metrics(
    rewards: Sequence[np.ndarray], edges: Sequence[Sequence[Edge]], ceilings: Sequence[float]
) -> dict[str, float]:
    """Returns metrics with the names and definitions of training, and some that training does not have.

    loss = weighted mean of -[p log sigmoid(d) + (1 - p) log sigmoid(-d)] over edges with d = r_w - r_l and target p.
    `accuracy_low`, `accuracy_high`: see `accuracy_interval`. `calibration_error`: weighted mean |confidence - accuracy|
    over the bins of `calibration`. `accuracy_ceiling`: if `ceilings` (of each comparison) has no NaN.

    Args:
      rewards, edges: as for `edge_table`, which also documents the errors.
    """
    table = edge_table(rewards, edges)
    margin, target = table.margin, table.target
    mean = lambda values: float(np.average(values, weights=table.weight))
    all_rewards = np.concatenate(rewards).astype(np.float64)
    correct, total = ranking_accuracy_sums(margin, table.weight, target)
    low, high = accuracy_interval(table)
    confidence, accuracy, weight = calibration(table)
    metrics = {
        "accuracy": float(correct / total),
        "accuracy_low": low,
        "accuracy_high": high,
        "loss": mean(target * np.logaddexp(0.0, -margin) + (1 - target) * np.logaddexp(0.0, margin)),
        "margin": mean(margin),
        "reward_mean": float(all_rewards.mean()),
        "reward_std": float(all_rewards.std()),
        "chosen_reward_mean": mean(table.winner),
        "rejected_reward_mean": mean(table.loser),
        "calibration_error": float(np.average(np.abs(confidence - accuracy), weights=weight)),
    }
    if not np.isnan(ceilings).any():
        metrics["accuracy_ceiling"] = float(np.mean(ceilings))
    return metrics


def accuracy_interval(table: EdgeTable, seed: int = 0) -> tuple[float, float]:
    """Returns a 95 % bootstrap interval of the accuracy: its 2.5 and 97.5 percentiles over resampled comparisons.

    Comparisons are resampled, not edges, since the edges of one comparison are not independent.
    """
    _, index = np.unique(table.comparison, return_inverse=True)
    correct = np.bincount(index, weights=table.weight * correctness(table.margin))
    total = np.bincount(index, weights=table.weight)
    rng, count = np.random.default_rng(seed), len(total)
    samples = (rng.integers(count, size=count) for _ in range(_RESAMPLES))
    low, high = np.percentile([correct[i].sum() / total[i].sum() for i in samples], [2.5, 97.5])
    return float(low), float(high)
