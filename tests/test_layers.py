"""Imports go down or sideways-earlier only."""

import ast
import pathlib

import pytest

import rmjax

ROOT = pathlib.Path(rmjax.__file__).parent
# What each layer may import from rmjax besides itself.
ALLOWED = {
    "core": set(),
    "data": {"core"},
    "models": {"core"},
    "training": {"core", "data", "models"},
    "evaluation": {"core", "data", "models"},
    "serving": {"core", "data", "models", "evaluation"},
}


def imported_layers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("rmjax."):
                yield name.split(".")[1]


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_what_lies_below(layer):
    for path in (ROOT / layer).glob("*.py"):
        assert set(imported_layers(path)) <= ALLOWED[layer] | {layer}, path


def test_files_stay_readable():
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 320, path
