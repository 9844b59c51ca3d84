"""Test setup: eight simulated CPU devices, a persistent compilation cache, a token cache per test, and real data."""

import contextlib
import importlib
import os
import pathlib
import tempfile

import jax
import pytest
from absl.testing import flagsaver

jax.config.update("jax_num_cpu_devices", 8)
# Shared by the processes of pytest-xdist and those that tests start: JAX compiles again, with a warning, where an entry
# is being written.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(tempfile.gettempdir()) / "rmjax-test-cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

ROOT = pathlib.Path(__file__).parent.parent
# Files that take minutes. A worker of pytest-xdist runs a whole file: one that began last would leave the others idle.
_LONG = (
    "training/test_two_processes.py",
    "test_notebooks_last.py",
    "test_notebooks_first.py",
    "training/test_experiment.py",
)


def pytest_collection_modifyitems(items):
    """Runs the tests of long files first."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(_LONG))


@pytest.fixture(autouse=True)
def _own_token_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RMJAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run_main():
    """Runs programs in this process, `run_main(name, *flags)`; their flags have the values of before afterwards."""
    with contextlib.ExitStack() as stack:

        def run(name, *flags):
            program = importlib.import_module(f"rmjax.{name}")  # the attribute of that name may be a function
            values = program.FLAGS.values
            stack.callback(flagsaver.restore_flag_values, flagsaver.save_flag_values(values), values)
            program.FLAGS.parse([name, *flags])
            program.main([])

        yield run


@pytest.fixture
def shared_data():
    """Path of the real data beside the checkout; tests that need it are skipped if it is missing."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("the real data (../shared) is missing")
    return path
