"""Figures as SVG by matplotlib's object API: no pyplot, no display; safe in several threads."""

import io
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOCK = threading.Lock()  # matplotlib's settings are global
_SETTINGS = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib, so layouts are the same everywhere
    "font.size": 9,
    "grid.color": "#eee",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text as text
}


def draw_svg(plots: Sequence[Callable[["Axes"], None]], name: str) -> str:
    """Returns an SVG file with plots side by side over a common x axis; equal arguments give equal bytes.

    Each plot draws on the axes that it is called with; `name` seeds the ids of clip paths and markers.
    """
    from matplotlib.ticker import MaxNLocator  # here, since it is slow to import

    def draw(figure: "Figure") -> None:
        axes = figure.subplots(1, len(plots), sharex=True, squeeze=False)[0] if plots else ()
        for plot, each in zip(plots, axes, strict=True):
            for axis in (each.xaxis, each.yaxis):
                axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
            plot(each)

    return _save_svg(draw, (4.8 * max(len(plots), 1), 3), name)


def _save_svg(draw: Callable[["Figure"], None], size: tuple[float, float], name: str) -> str:
    """Returns what `draw` draws on a figure of `size` in inches as an SVG file."""
    import matplotlib
    from matplotlib.figure import Figure

    # Starting from the defaults, so that a matplotlibrc or the style of a notebook does not change the figure.
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_SETTINGS, "svg.hashsalt": name}
    file = io.StringIO()
    with _LOCK, matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return file.getvalue()


def draw_row_svg(
    group: np.ndarray, branch: np.ndarray, visible: np.ndarray, readouts: np.ndarray, texts: Sequence[str]
) -> str:
    """Returns an SVG file of a packed row: a strip of its tokens above its attention mask.

    Args:
      group, branch: int32 [T], as in `rmjax.data.schema.packed_spec`.
      visible: bool [T, T], whether the query token (row) attends to the key token (column).
      readouts: indices of the tokens at which rewards are read.
      texts: of the first tokens; written vertically into the strip.
    """
    length = len(group)
    colors = ["#ffffff", "#8aa1b8", "#2f6f9f", "#d9822b", "#3f9c6d", "#8d5fb0"]  # padding, prefix, then the branches
    kind = np.where(group == 0, 0, np.where(branch == 0, 1, 2 + (branch - 1) % 4))

    def draw(figure: "Figure") -> None:
        from matplotlib.colors import ListedColormap

        strip, mask = figure.subplots(2, 1, sharex=True, height_ratios=[1, 4.6])
        scale = {"cmap": ListedColormap(colors), "vmin": 0, "vmax": len(colors) - 1, "aspect": "auto"}
        strip.imshow(kind[None], **scale)
        mask.imshow(np.where(visible, kind[:, None], 0), **scale)
        for boundary in np.flatnonzero(np.diff(group)) + 0.5:
            for axes in (strip, mask):
                axes.axvline(boundary, color="#333", linewidth=0.8)
            mask.axhline(boundary, color="#333", linewidth=0.8)
        for i, text in enumerate(texts[:length]):
            shown = text.strip() or "·"
            strip.text(i, 0, shown[:9], rotation=90, ha="center", va="center", size=6, color="#fff", gid=f"token-{i}")
        marks = np.full(len(readouts), -0.62)
        strip.plot(readouts, marks, "v", color="#b33", markersize=5, clip_on=False, gid="readouts")
        strip.set(yticks=[], ylabel="tokens")
        mask.set(xlabel="attended token", ylabel="token")
        for axes in (strip, mask):
            axes.grid(visible=False)

    return _save_svg(draw, (6.4, 5.6), "row")
