"""Device meshes: sizes, and errors for sizes that do not fit the devices."""

import jax
import pytest

from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh, row_shards


@pytest.mark.parametrize(
    ("sizes", "shape", "shards"),
    [
        ((-1, 1, 1, 1), (8, 1, 1, 1), 8),
        ((2, -1, 2, 1), (2, 2, 2, 1), 4),
        ((1, 2, 1, 1), (1, 2, 1, 1), 2),  # fewer than the eight devices
        ((1, 1, 1, -1), (1, 1, 1, 8), 1),
    ],
)
def test_sizes(sizes, shape, shards):
    mesh = make_mesh(sizes)
    assert mesh.devices.shape == shape
    assert row_shards(mesh) == shards
    assert mesh.devices.flat[0] == jax.devices()[0]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((-1, -1, 1, 1), "at most one may be -1"),
        ((0, 1, 1, 1), "sizes must be positive"),
        ((-2, 1, 1, 1), "sizes must be positive"),
        ((-1, 3, 1, 1), "multiply to 3, but there are 8 devices"),
        ((3, 4, 1, 1), "multiply to 12, but there are 8 devices"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, message):
    with pytest.raises(InputError, match=message):
        make_mesh(sizes)


def test_several_processes_must_use_all_devices(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    assert make_mesh((2, 4, 1, 1)).devices.size == 8
    with pytest.raises(InputError, match="multiply to 4, but there are 8 devices"):
        make_mesh((2, 2, 1, 1))
