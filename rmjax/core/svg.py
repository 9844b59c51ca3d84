"""Figures as SVG, drawn by hand: axes, lines, dots and bars; text as strings, no plotting package."""

import html
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 460, 280  # pixels of a figure
_LEFT, _BOTTOM, _TOP, _RIGHT = 70, 42, 12, 12  # the axes' room


class Axes:
    """A figure's frame: maps data to pixels, and draws ticks.

    Args:
      x, y: the range of each axis; where both ends are equal it is widened.
      x_label, y_label: plain text.
    """

    def __init__(self, x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str):
        self._x, self._y = _widened(*x), _widened(*y)
        right, base = WIDTH - _RIGHT, HEIGHT - _BOTTOM
        self.parts = [
            f'<path d="M{_LEFT} {_TOP}V{base}H{right}" fill="none" stroke="#888"/>',
            f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>',
            f'<text transform="translate(13 {(base + _TOP) / 2}) rotate(-90)" text-anchor="middle">'
            f"{html.escape(y_label)}</text>",
        ]
        for value in np.linspace(*self._x, 5):
            self.text(self.x(value), base + 16, _tick(value), "middle")
        for value in np.linspace(*self._y, 5):
            self.text(_LEFT - 6, self.y(value) + 4, _tick(value), "end")

    def x(self, value: float) -> float:
        """Returns the pixel column of `value`."""
        return _LEFT + (value - self._x[0]) / (self._x[1] - self._x[0]) * (WIDTH - _RIGHT - _LEFT)

    def y(self, value: float) -> float:
        """Returns the pixel row of `value`."""
        return HEIGHT - _BOTTOM - (value - self._y[0]) / (self._y[1] - self._y[0]) * (HEIGHT - _BOTTOM - _TOP)

    def text(self, x: float, y: float, text: str, anchor: str) -> None:
        """Writes at a pixel; `anchor` is start, middle or end."""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>')

    def line(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Draws a dashed reference line."""
        self.parts.append(
            f'<path d="M{self.x(x0):.1f} {self.y(y0):.1f}L{self.x(x1):.1f} {self.y(y1):.1f}" stroke="#b33" '
            'stroke-dasharray="4 3"/>'
        )

    def curve(self, points: Sequence[tuple[float, float]], color: str) -> None:
        """Joins the points."""
        pixels = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{pixels}" fill="none" stroke="{color}" stroke-width="1.5"/>')

    def dot(self, x: float, y: float, color: str, radius: float = 3, opacity: float = 1) -> None:
        """Draws a dot; `radius` in pixels."""
        self.parts.append(
            f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:.1f}" fill="{color}" '
            f'fill-opacity="{opacity:g}"/>'
        )

    def svg(self) -> str:
        """Returns the figure as an element of an HTML page."""
        return f"<svg {_size(WIDTH)}>{''.join(self.parts)}</svg>"


def row(figures: Sequence[Axes]) -> str:
    """Returns a whole SVG file with the figures side by side on white."""
    width = WIDTH * len(figures)
    parts = "".join(f'<g transform="translate({i * WIDTH} 0)">{"".join(f.parts)}</g>' for i, f in enumerate(figures))
    style = "<style>text{font:12px system-ui,sans-serif;fill:#444}</style>"
    background = f'<rect width="{width}" height="{HEIGHT}" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {_size(width)}>{style}{background}{parts}</svg>\n'


def _size(width: int) -> str:
    return f'viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}"'


def _tick(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}"


def _widened(low: float, high: float) -> tuple[float, float]:
    if high > low:
        return low, high
    margin = abs(low) / 2 or 0.5
    return low - margin, high + margin
