"""The learning curve: drawn whole at every checkpoint and after resuming."""

import shutil
import xml.etree.ElementTree

import numpy as np
import pytest

from rmjax.core.plotting import draw_svg
from rmjax.training import figures
from rmjax.training.experiment import train
from tests.training.test_experiment import lines

SVG = "{http://www.w3.org/2000/svg}"


def element(root, name):
    """Returns the group with this id, or None."""
    return root.find(f".//{SVG}g[@id='{name}']")


def vertices(group):
    """Returns the points [N, 2] of a line in pixels (y downwards); none if there is no line."""
    path = [] if group is None else group.find(f"{SVG}path").get("d").replace("M", "").replace("L", "").split()
    return np.array(path, float).reshape(-1, 2)


def texts(group):
    return [text.text for text in group.iter(f"{SVG}text")]


def drawn_plots(text):
    """Returns, of each plot, (its y label, dots, points of the train and validation lines, dashed lines)."""
    root = xml.etree.ElementTree.fromstring(text)
    found = []
    for name in ("loss", "accuracy", "learning_rate"):
        if (plot := element(root, name)) is not None:
            groups = [element(plot, f"{name}-{kind}") for kind in ("train", "validation", "ceiling")]
            dots = 0 if groups[1] is None else len(groups[1].findall(f".//{SVG}use"))
            dashed = [group for group in groups[2:] if group is not None]
            assert all("stroke-dasharray" in group.find(f"{SVG}path").get("style") for group in dashed)
            label = next(text for text in texts(plot) if text in ("loss", "accuracy", "learning rate"))
            found.append((label, dots, [len(vertices(group)) for group in groups[:2]], len(dashed)))
    assert len(found) == sum(group.get("id") in ("loss", "accuracy", "learning_rate") for group in root.iter(f"{SVG}g"))
    return found


def series(*metrics):
    """Returns the series of (step, split, metrics)."""
    found = {}
    for each in metrics:
        figures.add_points(found, *each)
    return found


def test_a_run_is_drawn_and_drawn_again_after_resuming(tiny, tmp_path):
    workdir = tmp_path / "run"
    train(tiny, workdir)
    drawn = (workdir / "learning_curve.svg").read_text()
    trained, validated = len(lines(workdir, "train")), len(lines(workdir, "validation"))
    assert (trained, validated) == (6, 3)
    assert drawn_plots(drawn) == [
        ("loss", 3, [6, 3], 0),
        ("accuracy", 3, [6, 3], 1),  # the built-in data has a known ceiling
        ("learning rate", 0, [6, 0], 0),
    ]
    shutil.rmtree(workdir / "checkpoints" / "6")
    (workdir / "learning_curve.svg").write_text(drawn[: len(drawn) // 2])
    train(tiny, workdir)
    assert (workdir / "learning_curve.svg").read_text() == drawn


def test_curves_are_smoothed_and_subsampled_but_keep_their_ends():
    points = np.array([(step, step % 2) for step in range(1, 5001)], float)
    smooth = figures._smooth(points)
    np.testing.assert_array_equal(smooth[:, 0], points[:, 0])
    np.testing.assert_allclose(smooth[100:, 1], 0.5, atol=0.005)  # the mean of 100 points
    thin = figures._subsample(smooth)
    assert thin[[0, -1]].tolist() == smooth[[0, -1]].tolist()
    assert len(thin) == 400
    np.testing.assert_array_equal(figures._subsample(points[:400]), points[:400])


def test_missing_and_non_finite_metrics_are_left_out():
    only = series((1, "train", {"loss": 0.5}), (2, "train", {"loss": float("nan")}))
    assert drawn_plots(figures.draw(only)) == [("loss", 0, [1, 0], 0)]
    assert drawn_plots(figures.draw({})) == []


def test_values_map_to_positions_and_steps_have_integer_ticks():
    found = series(*((step, "validation", {"accuracy": 0.5 + step / 10, "accuracy_ceiling": 0.9}) for step in range(4)))
    plot = element(xml.etree.ElementTree.fromstring(figures.draw(found)), "accuracy")
    points, ceiling = vertices(element(plot, "accuracy-validation")), vertices(element(plot, "accuracy-ceiling"))
    np.testing.assert_allclose(np.diff(points, n=2, axis=0), 0, atol=1e-4)
    assert (np.diff(points[:, 0]) > 0).all()
    assert (np.diff(points[:, 1]) < 0).all()
    np.testing.assert_allclose(points[3, 1] - ceiling[:, 1], points[2, 1] - points[3, 1], atol=1e-4)
    assert [text for text in texts(plot) if text.isdecimal()] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 2.0), (0.7, 0.7), (0.0, 0.0)])
def test_an_svg_file_is_the_same_each_time_whatever_the_settings(low, high):
    def plot(axes):
        axes.plot([0, 10], [low, high], gid="line")
        axes.set(xlabel="a < b", ylabel="y & z")

    text = draw_svg([plot], "name")
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        assert draw_svg([plot], "name") == text
    root = xml.etree.ElementTree.fromstring(text)
    assert {"a < b", "y & z"} <= set(texts(root))
    (x0, y0), (x1, y1) = vertices(element(root, "line"))
    assert x0 < x1
    assert y1 < y0 if low < high else y1 == y0
