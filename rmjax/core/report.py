"""report.html: facts, headline and sections of an evaluation or a run, in one file without external resources."""

import html
import re
from collections.abc import Sequence

from rmjax.core.plotting import draw_svg
from rmjax.core.sections import Cell, Example, Figure, Section, Table
from rmjax.core.web import page

# Sorts a table by the column whose head is clicked: numbers by size, descending first.
_SCRIPT = """
for (const head of document.querySelectorAll("th")) head.onclick = () => {
  const table = head.closest("table"), column = [...head.parentNode.children].indexOf(head);
  const rows = [...table.querySelectorAll("tr")].slice(1), key = row => row.children[column].textContent;
  const number = text => parseFloat(text.replaceAll(",", ""));
  const up = head.dataset.up = head.dataset.up === "0" ? "1" : "0";
  const compare = (a, b) => isNaN(number(a)) || isNaN(number(b)) ? a.localeCompare(b) : number(a) - number(b);
  rows.sort((a, b) => (up === "1" ? 1 : -1) * compare(key(a), key(b))).forEach(row => row.parentNode.append(row));
};
"""


def render(
    title: str,
    facts: Sequence[tuple[str, str]],
    headline: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    notes: Sequence[str] = (),
    kind: str = "Evaluation",
) -> str:
    """Returns the HTML page, with the model's `facts` and the `headline` as (name, value) rows.

    Args:
      title: names what the report is about.
      kind: of the report.
    """
    head = f'<header><h1>{kind}</h1><span class="muted">{html.escape(title)}</span></header>'
    body = head + _rows("Model", facts) + render_body(headline, sections, notes)
    return page(f"{kind}: {title}", f"{body}<script>{_SCRIPT}</script>")


def render_body(headline: Sequence[tuple[str, str]], sections: Sequence[Section], notes: Sequence[str] = ()) -> str:
    """Returns the table, the notes and the sections of `render` without the page around them."""
    links = " · ".join(f'<a href="#{_anchor(section)}">{html.escape(section.title)}</a>' for section in sections)
    parts = [_rows("Results", headline, "number"), _paragraphs(notes), f"<nav><p>{links}</p></nav>" if links else ""]
    return "".join([*parts, *map(_section, sections)])


def _rows(title: str, rows: Sequence[tuple[str, str]], kind: str = "") -> str:
    cell = f'<td class="{kind}">' if kind else "<td>"
    # Names of metrics break at their underscores and slashes, where a phone has no room for them.
    shown = lambda name: re.sub(r"([_/])", r"\1<wbr>", html.escape(name))
    text = "".join(
        f'<tr><td class="name">{shown(name)}</td>{cell}{html.escape(value)}</td></tr>' for name, value in rows
    )
    return f"<h2>{title}</h2><table>{text}</table>" if rows else ""


def _anchor(section: Section) -> str:
    return re.sub(r"\W+", "-", section.title.lower())


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts if text)


def _section(section: Section) -> str:
    parts = (
        f'<h2 id="{_anchor(section)}">{html.escape(section.title)}</h2>',
        _paragraphs(section.text.split("\n\n")),
        f'<div class="figures">{"".join(map(_figure, section.figures))}</div>' if section.figures else "",
        *map(_table, section.tables),
        *map(_example, section.examples),
    )
    return f"<section>{''.join(parts)}</section>"


def _table(table: Table) -> str:
    kinds = [' class="number"' if isinstance(cell, int | float) else "" for cell in (table.rows or ((),))[0]]
    kinds += [""] * (len(table.columns) - len(kinds))
    head = "".join(
        f'<th{kind} title="sort">{html.escape(column)}</th>' for column, kind in zip(table.columns, kinds, strict=True)
    )
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    caption = f"<caption>{html.escape(table.caption)}</caption>"
    return f'<div style="overflow-x: auto"><table>{caption}<tr>{head}</tr>{rows}</table></div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{html.escape(cell)}</td>"
    text = "" if cell is None else f"{cell:.4f}" if isinstance(cell, float) else f"{cell:,}"
    return f'<td class="number">{text}</td>'


def _example(example: Example) -> str:
    fields = "".join(f"<h3>{html.escape(name)}</h3><pre>{html.escape(text)}</pre>" for name, text in example.fields)
    return f"<details><summary>{html.escape(example.title)}</summary>{fields}</details>"


def _figure(figure: Figure) -> str:
    svg = draw_svg(figure.plots, figure.name)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg[svg.index("<svg") :])  # HTML needs neither prologue nor namespaces
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{figure.name}-", svg)  # ids must be unique in the page
    return f"<figure>{svg}<figcaption>{html.escape(figure.caption)}</figcaption></figure>"
