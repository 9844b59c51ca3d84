"""Set up before any test imports JAX: eight simulated CPU devices and a persistent compilation cache."""

import pathlib
import tempfile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(tempfile.gettempdir()) / "rmjax-test-cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _own_token_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RMJAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shared_data():
    """The real data beside the checkout; tests that need it are skipped where it is absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("the real data (../shared) is not here")
    return path
