"""learning_curve.svg: what metrics.jsonl holds, drawn."""

import math
from collections.abc import Iterable

import numpy as np

from rmjax.core.svg import Axes, row

Points = list[tuple[int, float]]  # (step, value)

_POINTS = 400  # of a curve: more than the figure has pixels for; a long run's file stays small
_TRAIN, _VALIDATION = "#9bc", "#247"


def draw(lines: Iterable[dict]) -> str:
    """Returns an SVG file: loss, accuracy and learning rate over the steps; a figure without data is left out.

    Train metrics are smoothed by a moving mean over a fiftieth of the run so far; validation is drawn as it is, a dot
    a line, and the best reachable accuracy, where it is known, as a dashed line.

    Args:
      lines: of metrics.jsonl, in order.
    """
    series: dict[tuple[str, str], Points] = {}  # of (split, metric)
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "split") and math.isfinite(value):
                series.setdefault((line["split"], name), []).append((line["step"], value))
    figures = []
    for name, label in (("loss", "loss"), ("accuracy", "accuracy"), ("learning_rate", "learning rate")):
        trained, validated = series.get(("train", name), []), series.get(("validation", name), [])
        if name != "learning_rate":
            trained = _smoothed(trained)
        ceiling = series.get(("validation", "accuracy_ceiling"), [])[-1:] if name == "accuracy" else []
        if trained or validated:
            figures.append(_figure(label, _thinned(trained), _thinned(validated), ceiling))
    return row(figures)


def _figure(label: str, trained: Points, validated: Points, ceiling: Points) -> Axes:
    steps, values = zip(*trained, *validated, *ceiling, strict=True)
    axes = Axes((0, max(steps)), (min(values), max(values)), "step (light: train, dark: validation)", label)
    for step, best in ceiling:
        axes.line(0, best, step, best)
    axes.curve(trained, _TRAIN)
    axes.curve(validated, _VALIDATION)
    for step, value in validated:
        axes.dot(step, value, _VALIDATION)
    return axes


def _smoothed(points: Points) -> Points:
    """Returns each step with the mean of the values up to it, over a window of a fiftieth of them."""
    if not points:
        return points
    steps, values = zip(*points, strict=True)
    total = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - max(1, len(values) // 50), 0)
    return list(zip(steps, ((total[end] - total[start]) / (end - start)).tolist(), strict=True))


def _thinned(points: Points) -> Points:
    """Returns at most `_POINTS` of the points, the first and the last among them."""
    if len(points) <= _POINTS:
        return points
    return [points[i] for i in np.linspace(0, len(points) - 1, _POINTS).round().astype(int)]
