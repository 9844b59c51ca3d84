"""Calibration of the bounds of a reward model's probabilities, and disagreement as a predictor of errors.

Axis letters: E edges.
"""

import numpy as np

from rmjax.metrics.bootstrap import Bootstrap, percentiles, with_interval
from rmjax.metrics.correlation import auc
from rmjax.metrics.edges import EdgeTable
from rmjax.metrics.ranking import correctness

_BINS = 20  # of a probability from 0 to 1, as in RewardUQ
CELLS = ("confident_right", "confident_wrong", "unsure_right", "unsure_wrong")


def uncertainty_metrics(table: EdgeTable, std: np.ndarray, bootstrap: Bootstrap, beta: float = 1.0) -> dict[str, float]:
    """Returns the metrics of edges whose winner and loser have the standard deviations `std`, float64 [E, 2].

    With u_w and u_l of these and d = r_w - r_l, the bounds of the probability that the winner is better are
    sigmoid(d - beta (u_w + u_l)) and sigmoid(d + beta (u_w + u_l)).

    `bound_calibration_lower` (ELCE) = sum_b w_b max(p_b - acc_b, 0) over 20 equal bins of the lower bound: p_b its mean
    in the bin, acc_b how often the first response is the better one there, w_b the bin's share, over all pairs in both
    orders. `bound_calibration_upper` (EUCE): the same of max(acc_b - p_b, 0) and the upper bound. Both are 0 if the
    bounds hold in every bin.
    `confident_right`, …: shares of edges; a model is confident if |d| > beta (u_w + u_l).
    `confident_accuracy`, `unsure_accuracy`: of these edges alone.
    `error_auc_std`: AUROC of u_w + u_l as a predictor of wrongly ordered edges; `error_auc_margin` of -|d|, and
    `error_auc_ratio` of (u_w + u_l) / |d|. 0.5 is chance; edges of equal rewards are no errors here.

    Source: RewardUQ (bounds r ∓ beta u, ELCE, EUCE, the table of confidence and correctness).
    """
    margin, spread, weight = table.margin, std.sum(axis=1), table.weight
    lower, upper = _sigmoid(margin - beta * spread), _sigmoid(margin + beta * spread)
    right, confident = correctness(margin), np.abs(margin) > beta * spread
    low, high = _bin_sums(lower, 1 - upper, weight), _bin_sums(upper, 1 - lower, weight)
    found = with_interval(
        "bound_calibration_lower", float(_excess(low.sum(0)[None], 1)[0]), _interval(bootstrap, low, 1)
    )
    found |= with_interval(
        "bound_calibration_upper", float(_excess(high.sum(0)[None], -1)[0]), _interval(bootstrap, high, -1)
    )
    cells = (confident * right, confident * (1 - right), ~confident * right, ~confident * (1 - right))
    for name, value in zip(CELLS, cells, strict=True):
        found |= _mean(name, value, weight, bootstrap)
    for name, kept in (("confident_accuracy", confident), ("unsure_accuracy", ~confident)):
        if kept.any():
            found |= _mean(name, right, weight * kept, bootstrap)
    distance = np.abs(margin)
    ratio = np.divide(spread, distance, out=np.full_like(spread, np.inf), where=distance > 0)
    wrong = right < 0.5
    for name, score in (("std", spread), ("margin", -distance), ("ratio", np.minimum(ratio, 1e30))):
        statistic = auc(score, wrong)
        value = float(statistic(np.ones((1, len(wrong))))[0])
        found |= with_interval(f"error_auc_{name}", value, percentiles(bootstrap.samples(statistic)))
    return found


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))


def _mean(name: str, values: np.ndarray, weight: np.ndarray, bootstrap: Bootstrap) -> dict[str, float]:
    value = float(np.average(values, weights=weight))
    return with_interval(name, value, bootstrap.ratio(weight * values, weight))


def _bin_sums(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns of each edge its part in the sums of weight, bound and successes of each bin, float64 [E, 3 bins].

    Args:
      first, second: the bound of the edge with the winner first, and with the loser first.
    """
    rows = np.arange(len(first))
    sums = np.zeros((len(first), 3, _BINS))
    for bound, success in ((first, 1.0), (second, 0.0)):  # each row has two entries, which may share a bin
        index = np.minimum((bound * _BINS).astype(np.int64), _BINS - 1)
        for part, value in enumerate((weight, weight * bound, weight * success)):
            sums[rows, part, index] += value
    return sums.reshape(len(first), -1)


def _excess(sums: np.ndarray, sign: int) -> np.ndarray:
    """Returns sum_b w_b max(sign (p_b - acc_b), 0) of the sums [S, 3 bins] of `_bin_sums`, [S]."""
    weight, bound, success = np.moveaxis(sums.reshape(len(sums), 3, _BINS), 1, 0)
    return np.maximum(sign * (bound - success), 0).sum(axis=1) / weight.sum(axis=1)


def _interval(bootstrap: Bootstrap, sums: np.ndarray, sign: int) -> tuple[float, float]:
    return bootstrap.of_sums(sums, lambda resampled: _excess(resampled, sign))
