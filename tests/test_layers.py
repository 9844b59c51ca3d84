"""Import rules of the sub-packages, their docstrings, and the size of files."""

import ast
import pathlib

import pytest

import rmjax

ROOT = pathlib.Path(rmjax.__file__).parent
# What each layer (a sub-package, or a module in one) may import from rmjax besides itself, from the lowest layer up.
# The longest matching name decides. Programs (rmjax/*.py) may import everything.
_TRANSPORT = {
    "core",
    "serving.engine",
    "serving.errors",
    "serving.in_flight",
    "serving.metrics",
    "serving.protocol",
    "serving.registry",
    "serving.security",
    "serving.services",
}
ALLOWED = {
    "core": set(),
    "data.schema": {"core"},
    "data.records": {"core", "data.schema"},
    "data.curation": {"core", "data.schema", "data.records"},
    "data.tokens": {"core", "data.schema", "data.records", "data.curation"},
    "data.packing": {"core", "data.schema", "data.tokens"},
    "data.description": {"core", "data"},
    "data.report": {"core", "data"},
    "models": {"core"},
    "metrics": {"core", "data"},
    "training": {"core", "data", "models", "metrics"},
    "evaluation": {"core", "data", "models", "metrics"},
    "serving.client": {"serving.conversations"},
    "serving.conversations": set(),
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
    "serving.http": {"data", *_TRANSPORT},
    "serving.grpc": _TRANSPORT,
    "serving.app": {"core", "evaluation", "serving"},
    "serving": {"core"},
    "migration": {"core", "data", "models"},
    "api": {"core", "data", "models", "metrics", "training", "evaluation", "serving"},
}
PROGRAMS = {path.stem for path in ROOT.glob("*.py")}
PACKAGES = sorted(path.parent.relative_to(ROOT).as_posix() for path in ROOT.rglob("__init__.py"))


def imported_names(path):
    """Yields the full name of everything a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def is_within(name, package):
    return f"{name}.".startswith(f"{package}.")


def layer_of(module):
    return max((layer for layer in ALLOWED if is_within(module, layer)), key=len, default=None)


def modules():
    """Yields (name, path) of all modules in sub-packages."""
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module not in PROGRAMS:
            yield module, path


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_modules_import_only_from_lower_layers(module, path):
    layer = layer_of(module)
    names = set(imported_names(path)) - {"rmjax", "rmjax.__version__"}
    imported = sorted(name.removeprefix("rmjax.") for name in names if is_within(name, "rmjax"))
    if layer is None:
        assert path.name == "__init__.py", f"{path} is in no layer; add it to ALLOWED"
        assert not imported, f"{path} is in no layer, so it must not import from rmjax"
    for name in imported:
        allowed = any(is_within(name, lower) for lower in (layer, *ALLOWED[layer]))
        assert allowed, f"{path} imports rmjax.{name}, which is not allowed in {layer}"


def test_layers_exist():
    for layer in ALLOWED:
        path = ROOT / layer.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"ALLOWED names {layer}, which does not exist"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_have_a_docstring(package):
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text()))
    assert docstring, f"rmjax/{package}/__init__.py needs a docstring that says what belongs there"
    assert len(docstring) >= 60
    assert docstring.splitlines()[0].endswith((".", ":"))


def test_files_have_at_most_320_lines():
    for path in ROOT.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 320, path
