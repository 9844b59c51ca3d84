"""Locally weighted regression."""

import numpy as np

_POINTS = 60  # at which the curve is computed; between them it is linear


def lowess(x: np.ndarray, y: np.ndarray, fraction: float = 0.5, iterations: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points (x, y) of the LOWESS curve of y on x, float64 each, with x ascending.

    At each of up to 60 quantiles of x, a line is fitted to the nearest `fraction` of the points with tricube weights
    (1 - (d / d_max)³)³, times the bisquare weights of the residuals after the first of `iterations` + 1 passes. Equal
    x are never divided between a neighbourhood and its outside.

    Source: Cleveland 1979, "Robust locally weighted regression and smoothing scatterplots".
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    grid = np.unique(np.quantile(x, np.linspace(0, 1, _POINTS)))
    count = max(2, int(np.ceil(fraction * len(x))))
    robust = np.ones(len(x))
    fitted = np.zeros(len(grid))
    for _ in range(iterations + 1):
        for i, center in enumerate(grid):
            distance = np.abs(x - center)
            reach = max(np.partition(distance, count - 1)[count - 1], 1e-12) * (1 + 1e-9)
            weight = robust * np.clip(1 - (distance / reach) ** 3, 0, None) ** 3
            total = weight.sum()
            if total <= 0:  # all near points are outliers
                fitted[i] = np.median(y[distance <= reach])
                continue
            mean_x, mean_y = weight @ x / total, weight @ y / total
            variance = weight @ np.square(x - mean_x)
            slope = weight @ ((x - mean_x) * (y - mean_y)) / variance if variance > 1e-12 * total else 0.0
            fitted[i] = mean_y + slope * (center - mean_x)
        residual = np.abs(y - np.interp(x, grid, fitted))
        limit = 6 * np.median(residual)
        robust = np.clip(1 - np.square(residual / limit), 0, None) ** 2 if limit > 0 else np.ones(len(x))
    return grid, fitted
