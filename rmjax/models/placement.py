"""Arrays on the devices of a mesh from tensors that are read one at a time."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.core.mesh import make_mesh

_WHOLE = 1 << 26  # bytes of a shard up to which it is put together on the host, which takes fewer calls

Index = tuple[slice, ...]
Numbers = tuple[int, ...]  # of a tensor, along the leading axes


def from_tensors(
    leaf: jax.ShapeDtypeStruct,
    sharding: jax.sharding.Sharding,
    stacked: int,
    read: Callable[[Numbers, Index], np.ndarray],
) -> jax.Array:
    """Returns an array whose slices along its leading axes are tensors; each device of this process gets its shard.

    Of a large shard, only one tensor is on the host at a time, beside the shard if the device is a CPU.

    Args:
      leaf: shape and dtype.
      stacked: number of leading axes that number the tensors.
      read: returns the tensor with these numbers, or its slice, in any dtype.
    """
    arrays = []
    for shard in _shards(leaf, sharding, stacked):
        for at in shard.numbers:
            shard.set(at, read(at, shard.rest))
        arrays += shard.arrays()
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)


def from_columns(
    leaves: Sequence[jax.ShapeDtypeStruct],
    shardings: Sequence[jax.sharding.Sharding],
    stacked: int,
    read: Callable[[Numbers, Index], np.ndarray],
    convert: Callable[[jax.Array], Sequence[jax.Array]],
) -> list[jax.Array]:
    """Returns several arrays that are computed from whole columns of tensors, each read once; see `from_tensors`.

    Args:
      leaves: [..., I, O] or [..., 1, O], sharded alike but along the axis before the last.
      convert: returns the slices of the arrays for a tensor, or for some of its columns, [..., I, columns].
    """
    shards = [list(_shards(leaf, placed, stacked)) for leaf, placed in zip(leaves, shardings, strict=True)]
    users: dict[tuple[Numbers, tuple], list[tuple[int, _Shard]]] = {}
    for part, of_part in enumerate(shards):
        for shard in of_part:
            for at in shard.numbers:
                users.setdefault((at, shard.columns), []).append((part, shard))
    for (at, _), using in sorted(users.items(), key=lambda item: item[0]):
        first = using[0][1]
        device = first.devices[0]
        with jax.set_mesh(make_mesh(devices=[device])):
            tensor = read(at, (*first.rest[:-2], slice(None), first.rest[-1]))
            parts = jax.device_get(convert(jax.device_put(tensor, device)))
        for part, shard in using:
            shard.set(at, parts[part][..., shard.rest[-2], :])
    arrays = [[array for shard in of_part for array in shard.arrays()] for of_part in shards]
    return [
        jax.make_array_from_single_device_arrays(leaf.shape, placed, own)
        for leaf, placed, own in zip(leaves, shardings, arrays, strict=True)
    ]


def num_reads(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding, stacked: int, columns: bool = False) -> int:
    """Returns how often `from_tensors`, or with `columns` `from_columns`, reads a tensor or a slice of one."""
    shards = list(_shards(leaf, sharding, stacked))
    if columns:
        return len({(at, shard.columns) for shard in shards for at in shard.numbers})
    return sum(len(shard.numbers) for shard in shards)


class _Shard:
    """A shard of an array, which is filled tensor by tensor: on the host if it is small, else on its devices.

    Attributes:
      numbers: of the tensors that it holds.
      rest: its slice of each of them.
    """

    def __init__(self, index: Index, devices: list[jax.Device], leaf: jax.ShapeDtypeStruct, stacked: int):
        ranges = [range(*part.indices(size)) for part, size in zip(index, leaf.shape, strict=True)]
        self.devices, self._shape, self._dtype = devices, tuple(map(len, ranges)), leaf.dtype
        self.numbers: list[Numbers] = list(itertools.product(*ranges[:stacked]))
        self.rest = tuple(slice(part.start, part.stop) for part in ranges[stacked:])
        self._on_host = not stacked or math.prod(self._shape) * leaf.dtype.itemsize <= _WHOLE
        self._values: np.ndarray | None = None
        self._buffers: list[jax.Array] = []

    @property
    def columns(self) -> tuple:
        """What of a tensor is read for the shard by `from_columns`: its slice, but along the axis before the last."""
        return tuple((part.start, part.stop) for part in (*self.rest[:-2], self.rest[-1]))

    def set(self, at: Numbers, part: np.ndarray) -> None:
        """Sets the shard's slice of a tensor."""
        local = tuple(number - first for number, first in zip(at, self.numbers[0], strict=True))
        if self._on_host:
            if not local:
                self._values = np.asarray(part, self._dtype)
                return
            if self._values is None:
                self._values = np.empty(self._shape, self._dtype)
            self._values[local] = part
            return
        self._buffers = self._buffers or [jnp.zeros(self._shape, self._dtype, device=one) for one in self.devices]
        part = np.ascontiguousarray(part, self._dtype)
        self._buffers = [_set_on(*both, part, local) for both in zip(self.devices, self._buffers, strict=True)]
        jax.block_until_ready(self._buffers)

    def arrays(self) -> list[jax.Array]:
        """Returns the shard on each of its devices."""
        if self._values is None:
            return self._buffers
        values, self._values = self._values, None
        return [jax.device_put(values, device) for device in self.devices]


def _shards(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding, stacked: int) -> Iterator[_Shard]:
    """Yields each shard in this process."""
    found: dict[str, tuple[Index, list[jax.Device]]] = {}
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        assert index is not None  # only in the type stub
        found.setdefault(str(index), (index, []))[1].append(device)
    return (_Shard(index, devices, leaf, stacked) for index, devices in found.values())


def _set_on(device: jax.Device, buffer: jax.Array, part: np.ndarray, at: tuple[int, ...]) -> jax.Array:
    with jax.set_mesh(make_mesh(devices=[device])):  # programs for one device are refused within the mesh of several
        return _set(buffer, jax.device_put(part, device), at)


@functools.partial(jax.jit, donate_argnums=0)
def _set(array: jax.Array, value: jax.Array, at: tuple[Any, ...]) -> jax.Array:
    """Returns the array with a slice along its leading axes replaced, in the memory of the given one."""
    value = value.reshape((1,) * len(at) + value.shape)
    return jax.lax.dynamic_update_slice(array, value, (*at, *[0] * (array.ndim - len(at))))
