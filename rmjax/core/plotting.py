"""Figures as SVG by matplotlib's object API: no pyplot, no display; safe in several threads."""

import io
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    import matplotlib  # here, since it is slow to import
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    # Starting from the defaults, so that a matplotlibrc or the style of a notebook does not change the figure.
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_SETTINGS, "svg.hashsalt": name}
    file = io.StringIO()
    with _LOCK, matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.8 * max(len(plots), 1), 3), layout="constrained" if plots else None)
        axes = figure.subplots(1, len(plots), sharex=True, squeeze=False)[0] if plots else ()
        for plot, each in zip(plots, axes, strict=True):
            for axis in (each.xaxis, each.yaxis):
                axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
            plot(each)
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return file.getvalue()
