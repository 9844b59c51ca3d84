"""Calibration of the Bradley-Terry probabilities of a reward model."""

import numpy as np

from rmjax.metrics.edges import EdgeTable

_BINS = 10  # of the calibration curve, over probabilities 0.5 to 1


def calibration(table: EdgeTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (mean confidence, accuracy, weight) of the bins that are not empty, float64 each.

    The confidence in an edge is sigmoid(|r_w - r_l|), the Bradley-Terry probability of the response that the model
    prefers; a calibrated model is right that often.
    """
    confidence = 1 / (1 + np.exp(-np.abs(table.margin)))
    bins = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(np.int64), _BINS - 1)
    sums = [
        np.bincount(bins, weights=table.weight * values, minlength=_BINS)
        for values in (confidence, table.correct, np.ones_like(confidence))
    ]
    used = sums[2] > 0
    return sums[0][used] / sums[2][used], sums[1][used] / sums[2][used], sums[2][used]
