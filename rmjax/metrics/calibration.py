"""Calibration of a reward model's Bradley-Terry probabilities: reliability, Brier score, temperature.

Axis letters: E edges, S resamples (`bootstrap`), B bins.
"""

import dataclasses

import numpy as np
import scipy.optimize
import scipy.special

from rmjax.metrics.bootstrap import Bootstrap, with_interval
from rmjax.metrics.edges import EdgeTable
from rmjax.metrics.ranking import correctness

_BINS = 10  # of the calibration curve, over confidences from 0.5 to 1
_FOLDS = 5  # of the cross-validation of the temperature
_RANGE = 12.0  # of the logarithm of margin scale / temperature, to either side of 0


def calibration(table: EdgeTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (mean confidence, accuracy, weight) of each non-empty bin of edges, float64.

    The confidence is sigmoid(|r_w - r_l|), the Bradley-Terry probability of the response with the higher reward; the
    accuracy of a calibrated model equals it.
    """
    confidence, bins = _bins(table)
    weight = np.bincount(bins, table.weight, _BINS)
    used = weight > 0
    mean = lambda values: np.bincount(bins, table.weight * values, _BINS)[used] / weight[used]
    return mean(confidence), mean(correctness(table.margin)), weight[used]


def _bins(table: EdgeTable) -> tuple[np.ndarray, np.ndarray]:
    """Returns confidence [E], and the index of its bin int64 [E]."""
    confidence = 1 / (1 + np.exp(-np.abs(table.margin)))
    return confidence, np.minimum(((confidence - 0.5) * 2 * _BINS).astype(np.int64), _BINS - 1)


def log_loss(margin: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns -[p log sigmoid(d) + (1 - p) log sigmoid(-d)] of margins d and targets p, float64 [E]."""
    return target * np.logaddexp(0.0, -margin) + (1 - target) * np.logaddexp(0.0, margin)


def calibration_metrics(table: EdgeTable, bootstrap: Bootstrap) -> dict[str, float]:
    """Returns metrics of the probabilities sigmoid(r_w - r_l), with intervals.

    `calibration_error` (ECE): weighted mean |confidence - accuracy| over the bins of `calibration`.
    `calibration_error_max` (MCE): the largest of them.
    `brier`: weighted mean of (sigmoid(r_w - r_l) - target)².
    The intervals of the first two are not centered: the error of a bin is biased upwards, more so in a resample.
    """
    confidence, bins = _bins(table)
    rows = np.arange(len(bins))
    gap, weight = np.zeros((2, len(bins), _BINS))
    gap[rows, bins] = table.weight * (confidence - correctness(table.margin))
    weight[rows, bins] = table.weight

    def errors(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ECE and MCE [S] from the sums [S, 2 B]."""
        gaps, weights = np.abs(sums[:, :_BINS]), sums[:, _BINS:]
        each = np.divide(gaps, weights, out=np.zeros_like(gaps), where=weights > 0)
        return gaps.sum(1) / weights.sum(1), each.max(1)

    columns = np.concatenate([gap, weight], 1)
    (ece,), (mce,) = errors(columns.sum(0, keepdims=True))
    squared = table.weight * np.square(scipy.special.expit(table.margin) - table.target)
    return {
        **with_interval("calibration_error", ece, bootstrap.of_sums(columns, lambda sums: errors(sums)[0])),
        **with_interval("calibration_error_max", mce, bootstrap.of_sums(columns, lambda sums: errors(sums)[1])),
        **with_interval("brier", squared.sum() / table.weight.sum(), bootstrap.ratio(squared, table.weight)),
    }


@dataclasses.dataclass(frozen=True)
class Temperature:
    """The T that minimizes the loss of sigmoid(margin / T).

    Attributes:
      value: T fitted to all edges.
      metrics: `temperature`, and `temperature_gain`, the mean loss less that with T, by cross-validation; with
        intervals.
    """

    value: float
    metrics: dict[str, float]


def fit_temperature(margin: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """Returns the T > 0 that minimizes the weighted mean `log_loss(margin / T, target)`; margins are [E].

    The loss is convex in 1 / T. Where its minimum is at 0 or infinity (all edges right, or most wrong), T is e^-12 or
    e^12 of the margins' root mean square. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    scale = float(np.sqrt(np.average(np.square(margin), weights=weight)))
    if scale == 0:
        return 1.0
    loss = lambda log: float(np.average(log_loss(margin * (np.exp(log) / scale), target), weights=weight))
    found = scipy.optimize.minimize_scalar(loss, bounds=(-_RANGE, _RANGE), method="bounded", options={"xatol": 1e-6})
    return scale * float(np.exp(-found.x))


def temperature(table: EdgeTable, bootstrap: Bootstrap) -> Temperature:
    """Returns the best temperature and its gain.

    `temperature_gain` is estimated by cross-validation in 5 folds of whole prompts, so a T that fits noise has no gain.
    The interval of `temperature` is that of 1 / T after one Newton step from the estimate, on each resample.
    """
    margin, target, weight = table.margin, table.target, table.weight
    value = fit_temperature(margin, target, weight)
    fold = np.random.default_rng(0).permutation(bootstrap.clusters)[bootstrap.index] % _FOLDS
    scaled = np.empty_like(margin)
    for k in range(_FOLDS):
        held, rest = fold == k, fold != k
        if held.any():
            scaled[held] = margin[held] / (
                fit_temperature(margin[rest], target[rest], weight[rest]) if rest.any() else 1
            )
    gain = weight * (log_loss(margin, target) - log_loss(scaled, target))
    p = scipy.special.expit(margin / value)
    scale = float(np.sqrt(np.average(np.square(margin), weights=weight))) or 1.0
    bounds = (np.exp(-_RANGE) / scale, np.exp(_RANGE) / scale)
    derivatives = np.stack([weight * margin * (p - target), weight * np.square(margin) * p * (1 - p)], 1)

    def newton(sums: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse = 1 / value - sums[:, 0] / sums[:, 1]
        return 1 / np.clip(inverse, *bounds)  # a resample on which most edges are wrong has the largest temperature

    return Temperature(
        value,
        with_interval("temperature", value, bootstrap.of_sums(derivatives, newton))
        | with_interval("temperature_gain", gain.sum() / weight.sum(), bootstrap.ratio(gain, weight)),
    )
