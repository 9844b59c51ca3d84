"""Calibration of a reward model's Bradley-Terry probabilities."""

import numpy as np

from rmjax.metrics.edges import EdgeTable
from rmjax.metrics.ranking import correctness

_BINS = 10  # of the calibration curve, over confidences from 0.5 to 1


def calibration(table: EdgeTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (mean confidence, accuracy, weight) of each non-empty bin of edges, float64.

    The confidence is sigmoid(|r_w - r_l|), the Bradley-Terry probability of the response with the higher reward; the
    accuracy of a calibrated model equals it.
    """
    confidence = 1 / (1 + np.exp(-np.abs(table.margin)))
    bins = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(np.int64), _BINS - 1)
    weight = np.bincount(bins, table.weight, _BINS)
    used = weight > 0
    mean = lambda values: np.bincount(bins, table.weight * values, _BINS)[used] / weight[used]
    return mean(confidence), mean(correctness(table.margin)), weight[used]
