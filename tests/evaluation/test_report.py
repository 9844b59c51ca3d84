"""report.html: its figures show the edge table, and it needs no other file."""

import collections
import re
import xml.etree.ElementTree

import numpy as np
import pytest

from rmjax.core import report
from rmjax.core.sections import Example, Section, Table
from rmjax.data.schema import Edge
from rmjax.evaluation.measures.preferences import calibration_figure, margin_figure
from rmjax.metrics.calibration import calibration
from rmjax.metrics.edges import edge_table

PAIR = (Edge(0, 1),)


def make_table(*pairs):
    return edge_table([np.array(pair, np.float32) for pair in pairs], [PAIR] * len(pairs))


def render(title, headline, table):
    """Returns the page with the two figures of an edge table, or none."""
    figures = () if table is None else (margin_figure(table), calibration_figure(table))
    return report.render(title, [("base model", "m<")], headline, [Section("Preferences", figures=figures)])


def figures(page):
    """Returns the page's <svg> elements, parsed."""
    found = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    return [xml.etree.ElementTree.fromstring(text.replace("xlink:href", "href")) for text in found]


def group(figure, name):
    return figure.find(f".//g[@id='{name}']")


def vertices(path):
    return np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.get("d")), float)


def test_the_page_is_self_contained():
    page = render("a <model>", [("accuracy", "0.5")], make_table((1, 0), (0, 0)))
    assert page.count("<svg") == 2
    assert "a &lt;model&gt;" in page
    assert '<tr><td class="name">base model</td><td>m&lt;</td></tr>' in page
    assert '<tr><td class="name">accuracy</td><td class="number">0.5</td></tr>' in page
    assert 'name="viewport"' in page
    assert "<?xml" not in page
    assert "http" not in page
    assert "src=" not in page
    ids = collections.Counter(re.findall(r'\bid="([^"]*)"', page))
    assert ids.most_common(1)[0][1] == 1
    references = set(re.findall(r'(?:href="#|url\(#)([^")]*)', page))
    assert references
    assert references <= set(ids)
    assert render("t", [], None).count("<svg") == 0


def test_the_histogram_has_the_margins():
    table = make_table(*[(3, 0)] * 4, (-1, 0), (0, 0))
    margins, _ = figures(render("t", [], table))
    x, y = vertices(group(margins, "margins-histogram").find("path")).T  # (x0, 0), (x0, y0), (x1, y0), (x1, y1), ...
    left, right, height = x[1:63:2], x[2:63:2], (y[0] - y[1:63:2]) / (y[0] - y.min()) * 4
    zero = vertices(group(margins, "margins-zero").find("path"))[0, 0]
    bars = [(low, high, count) for low, high, count in zip(left, right, height, strict=True) if count > 0.01]
    assert [count for *_, count in bars] == pytest.approx([1, 1, 4], abs=0.01)  # margins -1, 0 and 3
    assert bars[0][1] < bars[1][0] < zero < bars[1][1] < bars[2][0]
    assert bars[2][1] == x.max()
    texts = [text.text for text in margins.iter("text")]
    assert {"margin", "comparisons"} <= set(texts)
    assert {"0", "1", "2", "3", "4"} <= set(texts)  # integer counts
    assert "0.5" not in texts


def test_the_calibration_curve_has_a_dot_per_bin():
    rng = np.random.default_rng(0)
    table = make_table(*((margin, 0) for margin in rng.normal(size=200) * 2 + 1))
    confidence, accuracy, weight = calibration(table)
    _, figure = figures(render("t", [], table))
    dots = [vertices(path) for path in group(figure, "calibration-bins").findall(".//path")]
    assert len(dots) == len(confidence) == 10
    line = vertices(group(figure, "calibration-calibrated").find("path"))  # from (0.5, 0.5) to (1, 1)
    centers = np.array([(dot.max(0) + dot.min(0)) / 2 for dot in dots])
    scaled = 0.5 + 0.5 * (centers - line[0]) / (line[1] - line[0])
    np.testing.assert_allclose(scaled, np.stack([confidence, accuracy], 1), atol=1e-3)
    widths = np.array([np.ptp(dot[:, 0]) for dot in dots])
    assert widths.argmax() == weight.argmax()
    np.testing.assert_allclose(np.diff(np.square(widths)), 500 * np.diff(weight) / weight.sum(), atol=0.1)


def test_sections_have_text_tables_and_examples_that_unfold():
    table = Table("Groups <1>", ("group", "accuracy"), (("a & b", 0.25), ("none", None), ("many", 1234)))
    example = Example("margin -1", (("prompt", "<b>Is it?</b>"), ("chosen", "Yes.")))
    page = report.render("t", [], [], [Section("A title", "One.\n\nTwo.", (table,), (), (example,))])
    assert '<h2 id="a-title">A title</h2><p>One.</p><p>Two.</p>' in page
    assert '<a href="#a-title">A title</a>' in page
    heads = '<th title="sort">group</th><th class="number" title="sort">accuracy</th>'
    assert f"<caption>Groups &lt;1&gt;</caption><tr>{heads}</tr>" in page
    assert '<td>a &amp; b</td><td class="number">0.2500</td>' in page
    assert '<td class="number"></td>' in page
    assert '<td class="number">1,234</td>' in page
    assert "<details><summary>margin -1</summary><h3>prompt</h3><pre>&lt;b&gt;Is it?&lt;/b&gt;</pre>" in page


def test_rendering_is_deterministic():
    table = make_table((1, 0), (0, 2))
    assert render("t", [], table) == render("t", [], table)
