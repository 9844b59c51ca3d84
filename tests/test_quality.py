"""Static checks and executable documentation: ruff, mypy, doctests, the documentation build, words."""

import ast
import doctest
import importlib
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

import rmjax
from tests.conftest import ROOT

PACKAGE = pathlib.Path(rmjax.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in PACKAGE.rglob("*.py")
)


def run(*command):
    """Runs a tool of this environment in the checkout; fails with its output."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff(command):
    run("ruff", *command, ".")


def test_mypy():
    run("mypy")


def test_the_documentation_builds_without_warnings(tmp_path):
    if importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material (extra [docs]) is not installed")
    run("mkdocs", "build", "--strict", "--quiet", f"--site-dir={tmp_path}")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    failures, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not failures


def test_there_are_docstring_examples():
    texts = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    assert sum(">>>" in text for text in texts.values()) >= 8


def test_formatting_is_skipped_for_tables_only():
    """`# fmt: skip` may only end a module-level assignment."""
    for path in [path for folder in ("rmjax", "experiments", "configs") for path in (ROOT / folder).rglob("*.py")]:
        text = path.read_text()
        tables = [node for node in ast.parse(text).body if isinstance(node, ast.Assign | ast.AnnAssign)]
        ends = {node.end_lineno for node in tables}
        skipped = {number for number, line in enumerate(text.splitlines(), 1) if "# fmt: skip" in line}
        assert skipped <= ends, f"{path}: a skip that is not the end of a table, in lines {sorted(skipped - ends)}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "BUILD_NOTES.md", "docs/design.md"])
def test_files_named_in_the_documentation_exist(page):
    for name in re.findall(
        r"`((?:rmjax|tests|experiments|configs|docs|deploy)/[\w./]+\.\w+)`", (ROOT / page).read_text()
    ):
        if "NAME" not in name:
            assert (ROOT / name).exists(), f"{page} names {name}"
