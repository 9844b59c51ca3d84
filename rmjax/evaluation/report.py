"""report.html: the headline table and two figures as inline SVG, in one file without external resources."""

import html
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmjax.core.plotting import draw_svg
from rmjax.core.web import page
from rmjax.metrics.calibration import calibration
from rmjax.metrics.edges import EdgeTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def render(title: str, headline: list[tuple[str, str]], table: EdgeTable | None, notes: Sequence[str] = ()) -> str:
    """Returns the HTML page, with `headline` as (name, value) rows; without figures if `table` is None."""
    head = f'<header><h1>Reward model evaluation</h1><span class="muted">{html.escape(title)}</span></header>'
    return page(f"Evaluation: {title}", head + render_body(headline, table, notes))


def render_body(headline: list[tuple[str, str]], table: EdgeTable | None, notes: Sequence[str] = ()) -> str:
    """Returns the table, the notes and the figures of `render` without the page around them."""
    rows = "".join(
        f'<tr><td>{html.escape(name)}</td><td class="number">{html.escape(value)}</td></tr>' for name, value in headline
    )
    figures = "" if table is None else _margins(table) + _calibration(table)
    paragraphs = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f'<table>{rows}</table>{paragraphs}<div class="figures">{figures}</div>'


def _margins(table: EdgeTable) -> str:
    bound = max(float(np.abs(table.margin).max()), 1e-6)
    counts, edges = np.histogram(table.margin, bins=31, range=(-bound, bound), weights=table.weight)

    def plot(axes: "Axes") -> None:
        axes.stairs(counts, edges, fill=True, color="#47a", gid="histogram")
        axes.axvline(0, color="#b33", linestyle="--", linewidth=1, gid="zero")
        axes.set(xlabel="margin", ylabel="comparisons", ylim=(0, max(1.0, 1.05 * counts.max())))
        axes.locator_params(axis="y", integer=True)

    caption = "Margins r(chosen) - r(rejected); the model ranks comparisons left of the dashed line wrongly."
    return _figure("margins", plot, caption)


def _calibration(table: EdgeTable) -> str:
    confidence, accuracy, weight = calibration(table)

    def plot(axes: "Axes") -> None:
        axes.plot([0.5, 1], [0.5, 1], color="#b33", linestyle="--", linewidth=1, gid="calibrated")
        area = 16 + 500 * weight / weight.sum()
        axes.scatter(confidence, accuracy, area, color="#47a", alpha=0.6, clip_on=False, zorder=3, gid="bins")
        axes.set(xlim=(0.5, 1), ylim=(0, 1), xlabel="probability of the response with the higher reward")
        axes.set_ylabel("accuracy")

    caption = "Calibration: a calibrated model is on the dashed line. Dot areas grow with the share of comparisons."
    return _figure("calibration", plot, caption)


def _figure(name: str, plot: Callable[["Axes"], None], caption: str) -> str:
    svg = draw_svg([plot], name)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg[svg.index("<svg") :])  # HTML needs neither prologue nor namespaces
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)  # ids must be unique in the page
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
