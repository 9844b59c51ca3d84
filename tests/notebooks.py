"""The notebooks of experiments/, and their execution in a Jupyter kernel with little data and few steps."""

import os

import jax
import pytest

from tests.conftest import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

DIRECTORY = ROOT / "experiments"
NAMES = sorted(path.stem for path in DIRECTORY.glob("*.ipynb"))


def read(name):
    """Returns the committed notebook."""
    return nbformat.read(DIRECTORY / f"{name}.ipynb", as_version=4)


def execute(name, cache):
    """Returns the notebook with the outputs of a run from top to bottom; `cache`: directory of the token cache."""
    made = read(name)
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    variables = {
        "RMJAX_OFFLINE": "1",
        "RMJAX_SCALE": "0.05",
        "RMJAX_CACHE": str(cache),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    nbclient.NotebookClient(made, timeout=300, kernel_name="python3", cwd=str(DIRECTORY)).execute(
        env=os.environ | variables
    )
    return made


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """Returns the MIME types and kinds of a cell's outputs."""
    return {kind for output in cell.outputs for kind in output.get("data", {output.output_type: ""})}


def check_same_figures(made, committed):
    """Every cell whose committed output is a figure or a report has one now, unless a package for it is missing."""
    for cell, saved in zip(code_cells(made), code_cells(committed), strict=True):
        optional = saved.source.startswith("if pod:")  # needs libtpu
        missing = {"image/png", "text/html"} & kinds(saved) - kinds(cell)
        assert optional or not missing, (missing, cell.source)
