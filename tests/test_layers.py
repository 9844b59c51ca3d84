"""Imports go down or sideways-earlier only."""

import ast
import pathlib

import pytest

import rmjax

ROOT = pathlib.Path(rmjax.__file__).parent
# What each room may import from rmjax besides itself; rooms of one package stand in their order.
ALLOWED = {
    "core": set(),
    "data.schema": {"core"},
    "data.records": {"core", "data.schema"},
    "data.tokens": {"core", "data.schema", "data.records"},
    "data.packing": {"core", "data.schema", "data.tokens"},
    "data.description": {"core", "data"},
    "models": {"core"},
    "metrics": {"core", "data"},
    "training": {"core", "data", "models", "metrics"},
    "evaluation": {"core", "data", "models", "metrics"},
    "serving.errors": {"core"},
    "serving.metrics": {"core"},
    "serving.protocol": {"core", "serving.errors", "serving.metrics"},
    "serving.engine": {"core", "data", "serving.errors", "serving.metrics"},
    "serving.services": {
        "core",
        "data",
        "models",
        "serving.engine",
        "serving.errors",
        "serving.metrics",
        "serving.protocol",
    },
    "serving": {"core", "data", "models", "metrics", "evaluation"},
}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("rmjax."):
                yield name.removeprefix("rmjax.")


def room_of(module):
    """Returns the room with the longest name that holds a module."""
    return max((room for room in ALLOWED if f"{module}.".startswith(f"{room}.")), key=len, default=None)


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if room_of(module):
            yield module, path


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_module_imports_only_what_lies_below(module, path):
    room = room_of(module)
    for name in imported_modules(path):
        allowed = any(f"{name}.".startswith(f"{below}.") for below in (room, *ALLOWED[room]))
        assert allowed, f"{path} imports rmjax.{name}, which {room} may not"


def test_files_stay_readable():
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 320, path
