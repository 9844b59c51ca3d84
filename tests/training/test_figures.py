"""The learning curve: a picture of metrics.jsonl, drawn whole at every checkpoint and after resuming."""

import shutil
import xml.etree.ElementTree

import pytest

from rmjax.core.svg import Axes, row
from rmjax.training import figures
from rmjax.training.experiment import train
from tests.training.test_experiment import lines

SVG = "{http://www.w3.org/2000/svg}"


def drawn_figures(text):
    """Returns, of each figure, (its y label, dots, points of its polylines, dashed lines)."""
    found = []
    for group in xml.etree.ElementTree.fromstring(text).findall(f"{SVG}g"):
        label = group.findall(f"{SVG}text")[1].text
        polylines = [len(line.get("points").split()) for line in group.findall(f"{SVG}polyline")]
        dashed = [path for path in group.findall(f"{SVG}path") if path.get("stroke-dasharray")]
        found.append((label, len(group.findall(f"{SVG}circle")), polylines, len(dashed)))
    return found


def test_a_run_is_drawn_and_drawn_again_after_resuming(tiny, tmp_path):
    workdir = tmp_path / "run"
    train(tiny, workdir)
    drawn = (workdir / "learning_curve.svg").read_text()
    trained, validated = len(lines(workdir, "train")), len(lines(workdir, "validation"))
    assert (trained, validated) == (6, 3)
    assert drawn_figures(drawn) == [
        ("loss", 3, [6, 3], 0),
        ("accuracy", 3, [6, 3], 1),  # the built-in data knows the ceiling
        ("learning rate", 0, [6, 0], 0),
    ]
    shutil.rmtree(workdir / "checkpoints" / "6")
    (workdir / "learning_curve.svg").write_text(drawn[: len(drawn) // 2])  # as a kill might leave another's file
    train(tiny, workdir)
    assert (workdir / "learning_curve.svg").read_text() == drawn


def test_a_curve_is_smoothed_and_thinned_but_keeps_its_ends():
    points = [(step, float(step % 2)) for step in range(1, 5001)]
    smooth = figures._smoothed(points)
    assert [step for step, _ in smooth] == [step for step, _ in points]
    assert {round(value, 2) for _, value in smooth[100:]} == {0.5}  # over 100 of them
    thin = figures._thinned(smooth)
    assert (thin[0], thin[-1], len(thin)) == (smooth[0], smooth[-1], 400)


def test_what_is_not_there_or_not_finite_is_left_out():
    only = [{"step": 1, "split": "train", "loss": 0.5}, {"step": 2, "split": "train", "loss": float("nan")}]
    assert drawn_figures(figures.draw(only)) == [("loss", 0, [1, 0], 0)]
    assert drawn_figures(figures.draw([])) == []


@pytest.mark.parametrize(("low", "high"), [(0.0, 2.0), (0.7, 0.7), (0.0, 0.0)])
def test_data_map_onto_the_frame(low, high):
    axes = Axes((0, 10), (low, high), "a < b", "y & z")
    assert axes.x(10) > axes.x(0)
    assert axes.y(high) <= axes.y(low)
    axes.curve([(0, low), (10, high)], "#000")
    texts = [element.text for element in xml.etree.ElementTree.fromstring(row([axes])).iter(f"{SVG}text")]
    assert texts[:2] == ["a < b", "y & z"]
