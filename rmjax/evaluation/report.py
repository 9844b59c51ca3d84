"""report.html: one file without external resources, a headline table and two figures as inline SVG."""

import html
import math

import numpy as np

from rmjax.core.svg import Axes
from rmjax.metrics.calibration import calibration
from rmjax.metrics.edges import EdgeTable

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:980px;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "table{border-collapse:collapse}td{padding:.2em 1.2em .2em 0;border-bottom:1px solid #ddd}"
    "td+td{text-align:right;font-variant-numeric:tabular-nums}figure{display:inline-block;margin:1em 1em 0 0}"
    "figcaption{max-width:460px;color:#555}svg text{font:12px system-ui,sans-serif;fill:#444}"
)


def render(title: str, headline: list[tuple[str, str]], table: EdgeTable | None) -> str:
    """Returns the page.

    Args:
      headline: (name, value) rows of the table.
      table: the edges that the figures show; None shows none.
    """
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in headline)
    figures = (
        []
        if table is None
        else [
            (
                "Margins r(chosen) - r(rejected). Bars left of the line are comparisons that the model gets wrong.",
                _margins(table),
            ),
            (
                "Calibration: how often the model is right against how sure it is. Dots on the dashed line are calibrated; "
                "their area is the share of comparisons.",
                _calibration(table),
            ),
        ]
    )
    body = "".join(f"<figure>{svg}<figcaption>{caption}</figcaption></figure>" for caption, svg in figures)
    title = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"</head><body><h1>{title}</h1><table>{rows}</table>{body}</body></html>\n"
    )


def _margins(table: EdgeTable) -> str:
    bound = max(float(np.abs(table.margin).max()), 1e-6)
    counts, edges = np.histogram(table.margin, bins=31, range=(-bound, bound), weights=table.weight)
    top = 10 ** math.floor(math.log10(counts.max())) if counts.max() >= 1 else 1.0
    axes = Axes((-bound, bound), (0, math.ceil(counts.max() / top) * top), "margin", "comparisons")
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        x, y = axes.x(low), axes.y(count)
        size = f'width="{axes.x(high) - x - 1:.1f}" height="{axes.y(0) - y:.1f}"'
        axes.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="#47a"/>')
    axes.line(0, 0, 0, math.ceil(counts.max() / top) * top)
    return axes.svg()


def _calibration(table: EdgeTable) -> str:
    confidence, accuracy, weight = calibration(table)
    axes = Axes((0.5, 1.0), (0.0, 1.0), "model's probability for the response it prefers", "accuracy")
    axes.line(0.5, 0.5, 1.0, 1.0)
    for x, y, share in zip(confidence, accuracy, weight / weight.sum(), strict=True):
        radius = 3 + 14 * math.sqrt(share)
        axes.dot(x, y, "#47a", radius, opacity=0.6)
    return axes.svg()
