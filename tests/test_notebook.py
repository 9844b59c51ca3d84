"""experiments/quickstart.ipynb runs from top to bottom in a Jupyter kernel."""

import os

import jax
import pytest

from tests.conftest import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")


@pytest.fixture(scope="module")
def notebook():
    made = nbformat.read(ROOT / "experiments" / "quickstart.ipynb", as_version=4)
    (cell,) = [cell for cell in made.cells if "config.train.steps = 400" in cell.source]
    cell.source = cell.source.replace("steps = 400", "steps = 40")  # the outputs are checked, not the model
    client = nbclient.NotebookClient(made, timeout=300, kernel_name="python3", cwd=str(ROOT / "experiments"))
    client.execute(env=os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir})
    return made


def outputs(notebook, source):
    """Returns the MIME data of the outputs of the cell that contains `source`."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source]
    return [output.get("data", {}) for output in cell.outputs]


def test_figures_and_reports_are_shown(notebook):
    for source in ("run.plot()", "model.explain(", "model.plot_packing(", "report = "):
        assert any("text/html" in data for data in outputs(notebook, source)), source
    assert "<svg" in outputs(notebook, "run.plot()")[-1]["text/html"]
    assert outputs(notebook, "plot_packing")[-1]["text/html"].count("token-") >= 20


def test_the_committed_notebook_has_no_outputs():
    """Outputs would go stale and make diffs unreadable."""
    committed = nbformat.read(ROOT / "experiments" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in committed.cells)
