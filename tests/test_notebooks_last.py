"""Notebooks 05 to 08 run from top to bottom."""

import pytest

from tests import notebooks


@pytest.mark.parametrize("name", [name for name in notebooks.NAMES if name >= "05"])
def test_the_notebook_runs(name, tmp_path):
    notebooks.check_same_figures(notebooks.execute(name, tmp_path), notebooks.read(name))
