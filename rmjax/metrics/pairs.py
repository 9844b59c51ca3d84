"""Metrics of rewards on preferences, in float64 on the host."""

from collections.abc import Sequence

import numpy as np

from rmjax.data.schema import Edge
from rmjax.metrics.bootstrap import Bootstrap, Interval, with_interval
from rmjax.metrics.calibration import calibration_metrics, log_loss
from rmjax.metrics.edges import EdgeTable, edge_table
from rmjax.metrics.ranking import correctness, ranking_accuracy_sums


def pair_metrics(
    rewards: Sequence[np.ndarray],
    edges: Sequence[Sequence[Edge]],
    ceilings: Sequence[float],
    prompts: Sequence[int] | None = None,
) -> dict[str, float]:
    """Returns metrics with the names and definitions of training, and some that training does not have.

    loss = weighted mean of -[p log sigmoid(d) + (1 - p) log sigmoid(-d)] over edges with d = r_w - r_l and target p.
    `accuracy_ceiling`: if `ceilings` (of each comparison) has no NaN. `calibration_metrics` documents the rest.
    `NAME_low` and `NAME_high` are the bounds of the bootstrap interval of NAME.

    Args:
      rewards, edges: as for `edge_table`, which also documents the errors.
      prompts: of each comparison, equal for those of one prompt; None: each is of a prompt of its own.
    """
    table = edge_table(rewards, edges)
    margin, target, weight = table.margin, table.target, table.weight
    clusters = np.arange(len(rewards)) if prompts is None else np.asarray(prompts)
    bootstrap = Bootstrap(clusters[table.comparison])
    correct, total = ranking_accuracy_sums(margin, weight, target)
    means = {"loss": log_loss(margin, target), "margin": margin}
    means |= {"chosen_reward_mean": table.winner, "rejected_reward_mean": table.loser}
    columns = np.stack([weight * values for values in (correctness(margin), *means.values())], 1)
    intervals = bootstrap.ratios(columns, np.repeat(weight[:, None], len(columns.T), 1))
    metrics = with_interval("accuracy", float(correct / total), intervals[0])
    for (name, values), interval in zip(means.items(), intervals[1:], strict=True):
        metrics |= with_interval(name, float(np.average(values, weights=weight)), interval)
    metrics |= _reward_moments(rewards, clusters) | calibration_metrics(table, bootstrap)
    if not np.isnan(ceilings).any():
        metrics["accuracy_ceiling"] = float(np.mean(ceilings))
    return metrics


def _reward_moments(rewards: Sequence[np.ndarray], clusters: np.ndarray) -> dict[str, float]:
    """Returns `reward_mean` and `reward_std` of all responses' rewards, with intervals."""
    values = np.concatenate(rewards).astype(np.float64)
    bootstrap = Bootstrap(np.repeat(clusters, [len(each) for each in rewards]))
    mean, std = float(values.mean()), float(values.std())
    centered = values - mean  # so that the variance is no difference of large squares
    columns = np.stack([np.ones_like(values), centered, np.square(centered)], 1)
    deviation = lambda sums: np.sqrt(np.maximum(sums[:, 2] / sums[:, 0] - np.square(sums[:, 1] / sums[:, 0]), 0))
    found = with_interval("reward_mean", mean, bootstrap.ratio(values, columns[:, 0]))
    return found | with_interval("reward_std", std, bootstrap.of_sums(columns, deviation))


def accuracy_interval(table: EdgeTable, seed: int = 0) -> Interval:
    """Returns a 95 % bootstrap interval of the accuracy over resampled comparisons, each of a prompt of its own."""
    correct = table.weight * correctness(table.margin)
    return Bootstrap(table.comparison, seed=seed).ratio(correct, table.weight)
