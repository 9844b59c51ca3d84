"""Sections of an evaluation: text, tables, figures and examples, without a layout; `report` renders them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cell = str | int | float | None  # None: unknown


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with a caption: names of columns, and rows of as many cells."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure: each of `plots` draws on the axes it is called with (`rmjax.core.plotting.draw_svg`).

    Attributes:
      name: unique in the report; ids of the SVG elements begin with it.
    """

    name: str
    plots: "tuple[Callable[[Axes], None], ...]"
    caption: str


@dataclasses.dataclass(frozen=True)
class Example:
    """One comparison: a title, and (name, text) fields in order, such as prompt and responses."""

    title: str
    fields: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report under a title; `text` is plain, its paragraphs separated by empty lines."""

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    examples: tuple[Example, ...] = ()


@dataclasses.dataclass(frozen=True)
class Measured:
    """Metrics by name, and the sections that show them."""

    metrics: dict[str, float]
    sections: tuple[Section, ...] = ()


INTERVAL_COLUMNS = ("value", "low", "high")


def interval_cells(metrics: Mapping[str, float], name: str) -> tuple[Cell, ...]:
    """Returns the cells of `INTERVAL_COLUMNS` for a metric; None where it has no value or no interval."""
    return tuple(metrics.get(key) for key in (name, f"{name}_low", f"{name}_high"))


def metric_table(caption: str, metrics: Mapping[str, float], names: Mapping[str, str] | None = None) -> Table:
    """Returns the table of metrics with their intervals, a row each.

    Args:
      names: metric to the text of its row; None: all metrics under their own names.
    """
    if names is None:
        bounds = {f"{name}{end}" for name in metrics for end in ("_low", "_high")}
        names = {name: name for name in metrics if name not in bounds}
    rows = tuple((text, *interval_cells(metrics, name)) for name, text in names.items() if name in metrics)
    known = len(INTERVAL_COLUMNS) if any(low is not None for _, _, low, _ in rows) else 1  # training has no intervals
    return Table(caption, ("metric", *INTERVAL_COLUMNS[:known]), tuple(row[: 1 + known] for row in rows))
