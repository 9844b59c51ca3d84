"""The scripts in experiments/ import names that exist. (Benchmarks are not run.)"""

import ast
import importlib

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.stem)
def test_imports_from_rmjax_exist(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "rmjax":
            module = importlib.import_module(node.module)
            for alias in node.names:
                # Sub-modules are attributes only after their import.
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
