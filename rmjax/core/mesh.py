"""The device mesh and shardings on it.

Mesh axes: `data` (replicas), `fsdp` (shards of parameters), `tensor` (shards of heads and MLP), `sequence` (shards of a
row's tokens). The rows of a batch are split over `data` and `fsdp` together.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rmjax.core.errors import InputError

AXES = ("data", "fsdp", "tensor", "sequence")
ROWS = ("data", "fsdp")  # the axes over which a batch's rows are split


def make_mesh(
    sizes: Sequence[int] = (1, 1, 1, 1), devices: Sequence[jax.Device] | None = None, name: str = "config.mesh"
) -> Mesh:
    """Returns a mesh with the axes `AXES`.

    Args:
      sizes: size of each axis; one may be -1 (all remaining devices). Without a -1, a single process may use fewer
        devices than there are.
      devices: default: `jax.devices()`.
      name: of the option that gives the sizes, in errors.

    The devices of a slice (of TPUs, by fast links) are neighbors in the mesh, and the outermost axis `data` spans the
    slices: across the slow links between them, only gradients are summed.

    Raises:
      InputError: the sizes do not fit the number of devices or of slices.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=_slice)  # stable
    given = dict(zip(AXES, sizes, strict=True))
    fixed = math.prod(size for size in sizes if size != -1)
    automatic = len([size for size in sizes if size == -1])
    if automatic > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(f"{name} is {given}; sizes must be positive, and at most one may be -1")
    unused = len(devices) % fixed if automatic else len(devices) - fixed
    if len(devices) < fixed or (unused and (automatic or jax.process_count() > 1)):
        raise InputError(
            f"{name} is {given}; its fixed sizes multiply to {fixed}, but there are {len(devices)} devices; "
            "expected a multiple if a size is -1, else as many (a single process may have more)"
        )
    shape = [len(devices) // fixed if size == -1 else size for size in sizes]
    slices = len({_slice(device) for device in devices[: math.prod(shape)]})
    if shape[0] % slices:
        raise InputError(
            f"{name} is {given}, and there are {slices} slices of devices; expected a multiple of {slices} as "
            "data, so that only gradients cross the slow links between slices"
        )
    return Mesh(np.asarray(devices[: math.prod(shape)]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slice(device: jax.Device) -> int:
    """Returns the slice of a device of several TPU slices; 0 if there are none."""
    return getattr(device, "slice_index", None) or 0


def parse_sizes(text: str, name: str = "--mesh") -> tuple[int, ...]:
    """Returns the sizes of the axes `AXES` from a text such as `tensor=4,fsdp=2`; `data` takes the rest by default.

    Args:
      name: of the option that gives the text, in errors.

    >>> parse_sizes(""), parse_sizes("tensor=4,fsdp=-1,data=1")
    ((-1, 1, 1, 1), (1, -1, 4, 1))

    Raises:
      InputError: the text has another form.
    """
    sizes: dict[str, int] = {}
    for entry in filter(None, text.split(",")):
        axis, _, value = entry.partition("=")
        if axis not in AXES or axis in sizes or not value.removeprefix("-").isdecimal():
            raise InputError(f"{name} is {text!r}; expected sizes of {', '.join(AXES)}, such as tensor=4,fsdp=2")
        sizes[axis] = int(value)
    defaults = dict.fromkeys(AXES, 1) | {"data": 1 if -1 in sizes.values() else -1}
    return tuple((defaults | sizes).values())


def row_shards(mesh: Mesh) -> int:
    """Returns the number of shards into which the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def constrain(x: jax.Array, *spec: Any) -> jax.Array:
    """Constrains `x` to the sharding PartitionSpec(*spec) on the current mesh (`jax.set_mesh`)."""
    return jax.lax.with_sharding_constraint(x, P(*spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that replicates an array on all devices."""
    return NamedSharding(mesh, P())
