"""The device mesh and what is laid out on it.

Mesh axes: `data` (replicas), `fsdp` (shards of parameters), `tensor` (shards of heads and mlp), `sequence` (shards of a
row's tokens). Rows of a batch are split over data and fsdp together.
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
ROWS = ("data", "fsdp")  # the axes that split a batch's rows


def make_mesh(sizes: Sequence[int] = (1, 1, 1, 1), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh of `sizes` for (data, fsdp, tensor, sequence); one size may be -1.

    Args:
      sizes: the axes' sizes. Their product must be the number of devices; a mesh without -1 may use the first few.
      devices: default: all of `jax.devices()`.

    Raises:
      InputError: the sizes do not fit the devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    given = dict(zip(AXES, sizes, strict=True))
    free = [name for name, size in given.items() if size == -1]
    fixed = math.prod(size for size in sizes if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise InputError(f"config.mesh is {given}; sizes are positive, and at most one is -1")
    if fixed < 1 or len(devices) < fixed or (free and len(devices) % fixed):
        raise InputError(
            f"config.mesh is {given}; its fixed sizes multiply to {fixed}, which does not divide the "
            f"{len(devices)} devices here"
        )
    if not free and fixed < len(devices) and jax.process_count() > 1:
        raise InputError(
            f"config.mesh is {given}, {fixed} devices; with several processes it must use all "
            f"{len(devices)}; set one axis to -1"
        )
    shape = [len(devices) // fixed if size == -1 else size for size in sizes]
    used = np.asarray(devices[: math.prod(shape)]).reshape(shape)
    return Mesh(used, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def row_shards(mesh: Mesh) -> int:
    """Returns into how many parts a batch's rows are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


def constrain(x: jax.Array, *spec: Any) -> jax.Array:
    """Lays `x` out as PartitionSpec(*spec) on the mesh in force (`jax.set_mesh`)."""
    return jax.lax.with_sharding_constraint(x, P(*spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that keeps a whole copy on every device."""
    return NamedSharding(mesh, P())
