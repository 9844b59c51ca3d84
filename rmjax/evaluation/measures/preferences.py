"""Preferences: accuracy in groups of edges, distributions of rewards, calibration, and length."""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from rmjax.core.sections import INTERVAL_COLUMNS, Figure, Measured, Section, Table, metric_table
from rmjax.evaluation.measures.groups import group_by_value
from rmjax.evaluation.scores import Scores, count_turns
from rmjax.metrics.bootstrap import Bootstrap, with_interval
from rmjax.metrics.calibration import Temperature, calibration, temperature
from rmjax.metrics.edges import EdgeTable, edge_table
from rmjax.metrics.lengths import edge_lengths, length_metrics
from rmjax.metrics.ranking import correctness

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MANY_TURNS = 4  # as many or more are one group
_POINTS = 2000  # of a scatter plot


def measure_preferences(scores: Scores, metrics: dict[str, float]) -> Measured:
    """Returns metrics of groups, calibration and length, and the sections about preferences.

    Args:
      scores: of the comparisons that have edges.
      metrics: `pair_metrics` of them, for the tables.
    """
    table = edge_table(scores.merged, [comparison.edges for comparison in scores.comparisons])
    bootstrap = Bootstrap(scores.prompts[table.comparison])
    fitted = temperature(table, bootstrap)
    found, tables = dict(fitted.metrics), []
    has_lengths = all(len(tokens) == len(values) for tokens, values in zip(scores.tokens, scores.merged, strict=True))
    lengths = edge_lengths(table, scores.tokens) if has_lengths else None
    for name, caption, groups in _groupings(scores, table, lengths):
        more, rows = _group_accuracy(table, bootstrap, name, groups)
        found |= more
        tables.append(Table(f"Accuracy by {caption}", ("group", "edges", *INTERVAL_COLUMNS), rows))
    names = ("accuracy", "loss", "margin", "accuracy_ceiling", "reward_mean", "reward_std")
    shown = metric_table("Metrics of preferences", metrics, {name: name for name in names})
    sections = [
        Section(
            "Preferences",
            "An edge is one preference between two responses. The accuracy is the share of the edges whose better "
            "response has the higher reward, by the edges' weights.",
            (shown, *tables, _quantiles(table)),
            (margin_figure(table), _reward_figure(table)),
        ),
        _calibration_section(table, metrics | fitted.metrics, fitted),
    ]
    if has_lengths:
        of_length = length_metrics(table, scores.merged, scores.tokens, scores.prompts)
        found |= of_length
        sections.append(_length_section(scores, of_length))
    return Measured(found, tuple(sections))


def _groupings(
    scores: Scores, table: EdgeTable, lengths: np.ndarray | None
) -> Iterator[tuple[str, str, list[tuple[str, np.ndarray]]]]:
    """Yields (metric prefix, caption, groups) of the groupings that divide the edges."""
    candidates = [
        ("by_margin", "margin of the label", group_by_value(table.label_margin)),
        ("by_strength", "strength of the label", group_by_value(table.strength)),
    ]
    if lengths is not None:
        difference = (lengths[:, 0] - lengths[:, 1]).astype(np.float64)
        caption = "length difference, chosen - rejected, in tokens"
        candidates.append(("by_length", caption, group_by_value(difference, integer=True)))
    turns = np.array([count_turns(comparison) for comparison in scores.comparisons])[table.comparison]
    texts = [(f"{turn}" if turn < _MANY_TURNS else f"{turn} or more", turn) for turn in range(1, _MANY_TURNS + 1)]
    groups = [(text, np.minimum(turns, _MANY_TURNS) == turn) for text, turn in texts]
    candidates.append(("by_turns", "number of the user's turns", [(text, rows) for text, rows in groups if rows.any()]))
    yield from (candidate for candidate in candidates if len(candidate[2]) > 1)


def _group_accuracy(
    table: EdgeTable, bootstrap: Bootstrap, prefix: str, groups: list[tuple[str, np.ndarray]]
) -> tuple[dict[str, float], tuple]:
    """Returns `PREFIX/GROUP/accuracy` with intervals and `PREFIX/GROUP/edges`, and the rows of a table."""
    weight = np.stack([table.weight * members for _, members in groups], 1)
    correct = weight * correctness(table.margin)[:, None]
    intervals = bootstrap.ratios(correct, weight)
    found: dict[str, float] = {}
    rows = []
    for i, (name, members) in enumerate(groups):
        value = float(correct[:, i].sum() / weight[:, i].sum()) if weight[:, i].any() else float("nan")
        found |= with_interval(f"{prefix}/{name}/accuracy", value, intervals[i])
        found[f"{prefix}/{name}/edges"] = int(members.sum())
        rows.append((name, int(members.sum()), value, *intervals[i]))
    return found, tuple(rows)


def _quantiles(table: EdgeTable) -> Table:
    levels = (5, 25, 50, 75, 95)
    rows = tuple(
        (name, *np.percentile(values, levels).tolist())
        for name, values in (("chosen", table.winner), ("rejected", table.loser), ("margin", table.margin))
    )
    return Table("Percentiles of the rewards at the edges' ends", ("", *(f"{level} %" for level in levels)), rows)


def margin_figure(table: EdgeTable) -> Figure:
    """Returns the histogram of the margins."""
    bound = max(float(np.abs(table.margin).max()), 1e-6)
    counts, edges = np.histogram(table.margin, bins=31, range=(-bound, bound), weights=table.weight)
    caption = "Margins r(chosen) - r(rejected); the model ranks comparisons left of the dashed line wrongly."
    return Figure("margins", (functools.partial(_draw_margins, counts, edges),), caption)


def _draw_margins(counts: np.ndarray, edges: np.ndarray, axes: "Axes") -> None:
    axes.stairs(counts, edges, fill=True, color="#47a", gid="histogram")
    axes.axvline(0, color="#b33", linestyle="--", linewidth=1, gid="zero")
    axes.set(xlabel="margin", ylabel="comparisons", ylim=(0, max(1.0, 1.05 * counts.max())))
    axes.locator_params(axis="y", integer=True)


def _reward_figure(table: EdgeTable) -> Figure:
    both = np.concatenate([table.winner, table.loser])
    low, high = float(both.min()), float(both.max())
    bins = np.linspace(low, high if high > low else low + 1, 31)
    chosen, rejected = (np.histogram(values, bins, weights=table.weight)[0] for values in (table.winner, table.loser))
    caption = "Distribution of the rewards of chosen and rejected responses."
    return Figure("rewards", (functools.partial(_draw_rewards, bins, chosen, rejected),), caption)


def _draw_rewards(bins: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, axes: "Axes") -> None:
    axes.stairs(chosen, bins, color="#47a", label="chosen", gid="chosen")
    axes.stairs(rejected, bins, color="#b33", label="rejected", gid="rejected")
    axes.set(xlabel="reward", ylabel="comparisons")
    axes.legend()


def calibration_figure(table: EdgeTable) -> Figure:
    """Returns the reliability diagram."""
    caption = "Calibration: a calibrated model is on the dashed line. Dot areas grow with the share of comparisons."
    return Figure("calibration", (functools.partial(_draw_calibration, *calibration(table)),), caption)


def _draw_calibration(confidence: np.ndarray, accuracy: np.ndarray, weight: np.ndarray, axes: "Axes") -> None:
    axes.plot([0.5, 1], [0.5, 1], color="#b33", linestyle="--", linewidth=1, gid="calibrated")
    area = 16 + 500 * weight / weight.sum()
    axes.scatter(confidence, accuracy, area, color="#47a", alpha=0.6, clip_on=False, zorder=3, gid="bins")
    axes.set(xlim=(0.5, 1), ylim=(0, 1), xlabel="probability of the response with the higher reward")
    axes.set_ylabel("accuracy")


def _calibration_section(table: EdgeTable, metrics: dict[str, float], fitted: Temperature) -> Section:
    rows = tuple(zip(*(map(float, column) for column in calibration(table)), strict=True))
    bins = Table("Reliability", ("mean confidence", "accuracy", "weight of the edges"), rows)
    names = ("calibration_error", "calibration_error_max", "brier", "loss", "temperature", "temperature_gain")
    text = (
        "The probability that a response is better is sigmoid(margin). Dividing all margins by the temperature "
        f"{fitted.value:.4g} minimizes the loss; temperature_gain is the loss that this saves, by cross-validation in "
        "folds of prompts."
    )
    shown = metric_table("Calibration", metrics, {name: name for name in names})
    return Section("Calibration", text, (shown, bins), (calibration_figure(table),))


def _length_section(scores: Scores, found: dict[str, float]) -> Section:
    x, y = np.concatenate(scores.tokens), np.concatenate(scores.merged)
    if len(x) > _POINTS:
        rows = np.sort(np.random.default_rng(0).choice(len(x), _POINTS, replace=False))
        x, y = x[rows], y[rows]
    figure = Figure("lengths", (functools.partial(_draw_lengths, x, y),), "Rewards and lengths of responses.")
    text = "The length of a response is its number of tokens, with those that a chat template adds."
    return Section("Length", text, (metric_table("Reward and length", found),), (figure,))


def _draw_lengths(tokens: np.ndarray, rewards: np.ndarray, axes: "Axes") -> None:
    axes.scatter(tokens, rewards, 6, color="#47a", alpha=0.5, gid="responses")
    axes.set(xlabel="tokens of the response", ylabel="reward")
