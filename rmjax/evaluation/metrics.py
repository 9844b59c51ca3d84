"""Metrics of rewards on labelled comparisons, in float64 on the host.

Axis letters: C comparisons, E edges of all comparisons.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.schema import Edge

_RESAMPLES = 1000  # of the bootstrap; its own error on a bound is then a few percent of the interval
_BINS = 10  # of the calibration curve, over probabilities 0.5 to 1


@dataclasses.dataclass(frozen=True)
class EdgeTable:
    """Every edge with the rewards at its ends: float64 [E], but `comparison` int64 [E], the edge's comparison."""

    winner: np.ndarray
    loser: np.ndarray
    weight: np.ndarray
    target: np.ndarray
    comparison: np.ndarray

    @property
    def margin(self) -> np.ndarray:
        """r_w - r_l, float64 [E]."""
        return self.winner - self.loser

    @property
    def correct(self) -> np.ndarray:
        """1 where the winner has the higher reward, 0.5 for a tie, else 0; float64 [E]."""
        return 0.5 + 0.5 * np.sign(self.margin)


def edge_table(rewards: Sequence[np.ndarray], edges: Sequence[Sequence[Edge]]) -> EdgeTable:
    """Gathers the edges of C comparisons.

    Args:
      rewards: of each comparison, [K].
      edges: of each comparison, over its K responses; ties of the data (target 0.5) are left out.

    Raises:
      InputError: there is no edge at all.
    """
    rows = [
        (values[edge.winner], values[edge.loser], edge.weight, edge.target, i)
        for i, (values, known) in enumerate(zip(rewards, edges, strict=True))
        for edge in known
        if edge.target != 0.5
    ]
    if not rows:
        raise InputError("no comparison that could be scored has a known preference; evaluate needs data with chosen "
                         "and rejected (for unlabelled data use rmjax.score)")  # fmt: skip
    table = np.array(rows, np.float64)
    return EdgeTable(*table[:, :4].T, table[:, 4].astype(np.int64))


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


def calibration(table: EdgeTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (mean confidence, accuracy, weight) of the bins that are not empty, float64 each.

    The confidence in an edge is sigmoid(|r_w - r_l|), the Bradley-Terry probability of the response that the model
    prefers; a calibrated model is right that often.
    """
    confidence = 1 / (1 + np.exp(-np.abs(table.margin)))
    bins = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(np.int64), _BINS - 1)
    sums = [np.bincount(bins, weights=table.weight * values, minlength=_BINS)
            for values in (confidence, table.correct, np.ones_like(confidence))]  # fmt: skip
    used = sums[2] > 0
    return sums[0][used] / sums[2][used], sums[1][used] / sums[2][used], sums[2][used]
