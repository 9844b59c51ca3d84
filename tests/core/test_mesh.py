"""Device meshes: sizes, and errors for sizes that do not fit the devices."""

import dataclasses

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


@dataclasses.dataclass(frozen=True)
class SliceDevice:
    """What a mesh reads of a device of one of several TPU slices."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5e"


def test_data_spans_the_slices():
    devices = [SliceDevice(i, i % 2) for i in range(8)]  # in turn of the two slices
    mesh = make_mesh([-1, 2, 2, 1], devices)
    assert mesh.shape == {"data": 2, "fsdp": 2, "tensor": 2, "sequence": 1}
    for part in mesh.devices:
        assert len({device.slice_index for device in part.flat}) == 1
    assert [device.id for device in mesh.devices.flat] == [0, 2, 4, 6, 1, 3, 5, 7]
    with pytest.raises(InputError, match=r"there are 2 slices of devices; expected a multiple of 2 as data"):
        make_mesh([1, 8, 1, 1], devices)
    assert make_mesh([1, 4, 1, 1], devices).shape["fsdp"] == 4  # of one slice
