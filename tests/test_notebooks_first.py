"""Notebooks 01 to 04 run from top to bottom; all committed ones have outputs, without paths of a machine."""

import re

import pytest

from tests import notebooks


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    return notebooks.execute("01_quickstart", tmp_path_factory.mktemp("cache"))


def outputs(notebook, source):
    """Returns the MIME data of the outputs of the cell that contains `source`."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source]
    return [output.get("data", {}) for output in cell.outputs]


def test_figures_and_reports_are_shown(quickstart):
    for source in ("run.plot()", "model.explain(", "model.plot_packing(", "report = "):
        assert any("text/html" in data for data in outputs(quickstart, source)), source
    assert "<svg" in outputs(quickstart, "run.plot()")[-1]["text/html"]
    assert outputs(quickstart, "plot_packing")[-1]["text/html"].count("token-") >= 20


@pytest.mark.parametrize("name", [name for name in notebooks.NAMES if "02" <= name < "05"])
def test_the_notebook_runs(name, tmp_path):
    notebooks.check_same_figures(notebooks.execute(name, tmp_path), notebooks.read(name))


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_the_committed_notebook_has_outputs_and_figures(name):
    path = notebooks.DIRECTORY / f"{name}.ipynb"
    assert path.stat().st_size < 300_000
    cells = notebooks.code_cells(notebooks.read(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    found = [notebooks.kinds(cell) for cell in cells]
    assert not any("error" in kinds for kinds in found)
    assert any({"image/png", "text/html"} & kinds for kinds in found)
    assert not any(output.get("name") == "stderr" for cell in cells for output in cell.outputs)
    assert re.findall(r"(?<![\w.])/(?:tmp|home|root|work|opt|Users|content)/[^\"\\ ]*", path.read_text()) == []


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_the_first_cells_say_what_is_taught_and_install_the_package(name):
    """The two set-up cells are the same in all notebooks."""
    made, other = notebooks.read(name), notebooks.read(notebooks.NAMES[0])
    assert made.cells[0].source.startswith("# ")
    assert all(word in made.cells[0].source for word in ("*What to expect:*", "*Time:*", "Colab"))
    setup = [cell.source for cell in notebooks.code_cells(other)][:2]
    sources = [cell.source for cell in notebooks.code_cells(made)]
    assert sources[0] == setup[0]
    assert setup[1] in sources[:3]


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_links_lead_to_files(name):
    for cell in notebooks.read(name).cells:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", cell.source) if cell.cell_type == "markdown" else []:
            assert link.startswith("https://") or (notebooks.DIRECTORY / link).exists(), link
