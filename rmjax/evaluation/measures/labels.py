"""Labels of attributes and of steps: agreement with the rewards, correlations between attributes, steps by position."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmjax.core.sections import Figure, Measured, Section, Table, interval_cells, metric_table
from rmjax.evaluation.scores import Scores
from rmjax.metrics.bootstrap import Samples, intervals
from rmjax.metrics.labels import attribute_samples, process_samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 2000  # of a scatter plot
_STEP_METRICS = (
    *("accuracy", "accuracy_ceiling", "auc", "first_error_f1", "error_accuracy", "correct_accuracy"),
    *("prm_score", "f1", "negative_f1"),
)


def label_values(scores: Scores, *, steps: bool) -> dict[str, float]:
    """Returns the metrics of the labels of steps, or of attributes, with intervals and the best reachable result."""
    found = intervals(label_samples(scores, steps=steps))
    ceilings = [comparison.ceiling for comparison in scores.with_labels(steps=steps).comparisons]
    if found and not np.isnan(ceilings).any():
        found["accuracy_ceiling" if steps else "mse_floor"] = float(np.mean(ceilings))
    return found


def label_samples(scores: Scores, *, steps: bool) -> Samples:
    """Returns the metrics of the labels of steps, or of attributes, over resampled prompts; none without labels."""
    scores = scores.with_labels(steps=steps)
    if not scores.comparisons:
        return {}
    labels, prompts = [scores.labels(i) for i in range(len(scores.comparisons))], scores.prompts.tolist()
    if steps:
        return process_samples([x[:, 0] for x in scores.rewards], [y[:, 0] for y in labels], prompts)
    rows = np.repeat(prompts, [len(each) for each in labels])
    return attribute_samples(np.concatenate(scores.rewards), np.concatenate(labels), scores.attributes, rows)


def measure_attributes(scores: Scores, metrics: dict[str, float]) -> Measured:
    """Returns correlations between attributes, and the section about them; nothing if no attribute has labels.

    `correlation/A/B` of rewards and `label_correlation/A/B` of labels: Pearson's, for attributes A before B.

    Args:
      metrics: `label_values` of the attributes.
    """
    if not any(name.startswith("mse/") for name in metrics):
        return Measured({})
    scores = scores.with_labels(steps=False)
    x = np.concatenate(scores.rewards).astype(np.float64)
    y = np.concatenate([scores.labels(i) for i in range(len(scores.comparisons))]).astype(np.float64)
    names = [name for name in scores.attributes if f"mse/{name}" in metrics]
    found: dict[str, float] = {}
    tables = []
    for key, caption, values in (("correlation", "rewards", x), ("label_correlation", "labels", y)):
        matrix = _correlations(values)
        for a, first in enumerate(scores.attributes):
            for b, second in list(enumerate(scores.attributes))[a + 1 :]:
                if np.isfinite(matrix[a, b]):
                    found[f"{key}/{first}/{second}"] = float(matrix[a, b])
        if len(scores.attributes) > 1:
            cells = [[float(value) if np.isfinite(value) else None for value in row] for row in matrix]
            rows = tuple((name, *row) for name, row in zip(scores.attributes, cells, strict=True))
            tables.append(Table(f"Correlations between the attributes' {caption}", ("", *scores.attributes), rows))
    kinds = ("mse", "pearson", "spearman")
    by_attribute = Table(
        "Agreement with the labels",
        ("attribute", *(f"{kind}{end}" for kind in kinds for end in ("", " low", " high"))),
        tuple((name, *(c for kind in kinds for c in interval_cells(metrics, f"{kind}/{name}"))) for name in names),
    )
    figures = tuple(_scatter(name, x[:, a], y[:, a]) for a, name in enumerate(scores.attributes) if name in names)
    return Measured(found, (Section("Attributes", "", (by_attribute, *tables), figures),))


def _correlations(values: np.ndarray) -> np.ndarray:
    """Returns the correlations [A, A] of columns [N, A], over rows where both are known; NaN if one is constant."""
    count = values.shape[1]
    found = np.eye(count)
    for a in range(count):
        for b in range(a):
            known = ~np.isnan(values[:, [a, b]]).any(1)
            varies = known.any() and (np.ptp(values[known][:, [a, b]], axis=0) > 0).all()
            found[a, b] = found[b, a] = np.corrcoef(values[known][:, [a, b]].T)[0, 1] if varies else np.nan
    return found


def _scatter(name: str, rewards: np.ndarray, labels: np.ndarray) -> Figure:
    rows = np.flatnonzero(~np.isnan(labels))
    if len(rows) > _POINTS:
        rows = np.sort(np.random.default_rng(0).choice(rows, _POINTS, replace=False))
    draw = functools.partial(_draw_scatter, labels[rows], rewards[rows], name)
    return Figure(f"attribute-{name}", (draw,), f"Rewards and labels of {name}; equal on the dashed line.")


def _draw_scatter(labels: np.ndarray, rewards: np.ndarray, name: str, axes: "Axes") -> None:
    low, high = float(labels.min()), float(labels.max())
    axes.plot([low, high], [low, high], color="#b33", linestyle="--", linewidth=1, gid="equal")
    axes.scatter(labels, rewards, 6, color="#47a", alpha=0.5, gid="responses")
    axes.set(xlabel=f"label of {name}", ylabel="reward")


def measure_steps(scores: Scores, metrics: dict[str, float]) -> Measured:
    """Returns the section about steps; nothing if no step has a label.

    Args:
      metrics: those of all labels, among them `label_values` of the steps.
    """
    scores = scores.with_labels(steps=True)
    if "prm_score" not in metrics or not scores.comparisons:
        return Measured({})
    text = (
        "A reward above 0 predicts a right step. first_error_f1 is ProcessBench's rule: the first wrong step must be "
        "found exactly; prm_score is PRMBench's: the mean of the F1 of right and of wrong steps."
    )
    labels = [scores.labels(i)[:, 0] for i in range(len(scores.comparisons))]
    positions = _accuracy_by_position([x[:, 0] for x in scores.rewards], labels)
    table = Table("Accuracy by position of the step", ("step", "judged steps", "share right", "accuracy"), positions)
    shown = metric_table("Metrics of steps", metrics, {name: name for name in _STEP_METRICS})
    return Measured({}, (Section("Steps", text, (shown, table)),))


def _accuracy_by_position(rewards: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> tuple:
    """Returns a row for each of the first 20 positions."""
    rows = []
    for position in range(min(20, max(map(len, labels)))):
        pairs = [(x[position], y[position]) for x, y in zip(rewards, labels, strict=True) if len(y) > position]
        judged = [(x, y > 0.5) for x, y in pairs if not np.isnan(y) and y != 0.5]
        if judged:
            right = np.array([y for _, y in judged])
            hits = np.array([0.5 if x == 0 else float((x > 0) == y) for x, y in judged])
            rows.append((position + 1, len(judged), float(right.mean()), float(hits.mean())))
    return tuple(rows)
