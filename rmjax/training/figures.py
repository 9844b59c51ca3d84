"""The learning curve of a run: loss, accuracy and learning rate over the steps, as SVG."""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from rmjax.core.plotting import draw_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = dict[tuple[str, str], list[tuple[int, float]]]  # (step, value) by (split, metric)

_LABELS = {"loss": "loss", "accuracy": "accuracy", "learning_rate": "learning rate"}  # of the metrics with a plot
_MAX_POINTS = 400  # per curve: more than the figure has pixels for, so a long run's file stays small


def add_points(series: Series, step: int, split: str, metrics: dict[str, float]) -> None:
    """Appends the finite values of the metrics that are drawn."""
    for name in (*_LABELS, "accuracy_ceiling"):
        if math.isfinite(value := metrics.get(name, math.nan)):
            series.setdefault((split, name), []).append((step, value))


def draw(series: Series) -> str:
    """Returns an SVG file with `learning_plots` side by side."""
    return draw_svg(learning_plots(series), "learning_curve")


def learning_plots(series: Series) -> "list[Callable[[Axes], None]]":
    """Returns a plot per metric that has points.

    Train metrics are smoothed by a moving mean over a fiftieth of their points; validation metrics are drawn unchanged,
    with a dot per validation, and the latest `accuracy_ceiling` as a dashed line.
    """
    plots: list[Callable[[Axes], None]] = []
    for name in _LABELS:
        train, validation = (
            np.array(series.get((split, name), []), np.float64).reshape(-1, 2) for split in ("train", "validation")
        )
        if name != "learning_rate":
            train = _smooth(train)
        ceiling = series.get(("validation", f"{name}_ceiling"), [])
        if len(train) or len(validation):
            plots.append(functools.partial(_plot, name, _subsample(train), _subsample(validation), ceiling))
    return plots


def _plot(name: str, train: np.ndarray, validation: np.ndarray, ceiling: list[tuple[int, float]], axes: "Axes") -> None:
    axes.set_gid(name)
    if len(train):
        axes.plot(*train.T, color="#9bc", label="train", gid=f"{name}-train")
    if len(validation):
        axes.plot(*validation.T, color="#247", marker=".", label="validation", gid=f"{name}-validation")
    for _, value in ceiling[-1:]:
        axes.axhline(value, color="#b33", linestyle="--", linewidth=1, label="ceiling", gid=f"{name}-ceiling")
    axes.locator_params(axis="x", integer=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 5))
    axes.set(xlabel="step", ylabel=_LABELS[name])
    if len(axes.lines) > 1:
        axes.legend()
    if name == "learning_rate":
        axes.set_ylim(bottom=0)


def _smooth(points: np.ndarray) -> np.ndarray:
    """Returns points [N, 2] with each value replaced by the mean of the last N / 50 values up to it."""
    total = np.concatenate([[0.0], np.cumsum(points[:, 1])])
    end = np.arange(1, len(points) + 1)
    start = np.maximum(end - max(1, len(points) // 50), 0)
    return np.stack([points[:, 0], (total[end] - total[start]) / (end - start)], axis=1)


def _subsample(points: np.ndarray) -> np.ndarray:
    """Returns at most `_MAX_POINTS` of the points [N, 2], among them the first and the last."""
    return points[np.linspace(0, len(points) - 1, min(len(points), _MAX_POINTS)).round().astype(int)]
