"""Arrays on the devices of a mesh from tensors that are read one at a time."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.core.mesh import make_mesh

_WHOLE = 1 << 26  # bytes of a shard up to which it is put together on the host, which takes fewer calls

Index = tuple[slice, ...]


def from_tensors(
    leaf: jax.ShapeDtypeStruct,
    sharding: jax.sharding.Sharding,
    stacked: int,
    read: Callable[[tuple[int, ...], Index], np.ndarray],
) -> jax.Array:
    """Returns an array whose slices along its leading axes are tensors; each device of this process gets its shard.

    Of a large shard, only one tensor is on the host at a time, beside the shard if the device is a CPU.

    Args:
      leaf: shape and dtype.
      stacked: number of leading axes that number the tensors.
      read: returns the tensor with these numbers, or its slice, in any dtype.
    """
    shards = []
    for index, holders in _shards(leaf, sharding):
        ranges = [range(*part.indices(size)) for part, size in zip(index, leaf.shape, strict=True)]
        shape, numbers = tuple(map(len, ranges)), list(np.ndindex(*map(len, ranges[:stacked])))
        tensor = lambda at, ranges=ranges, index=index: read(
            tuple(part[i] for part, i in zip(ranges, at, strict=False)), index[stacked:]
        )
        if not stacked or math.prod(shape) * leaf.dtype.itemsize <= _WHOLE:
            if stacked:
                values = np.empty(shape, leaf.dtype)
                for at in numbers:
                    values[at] = tensor(at)
            else:
                values = np.asarray(tensor(()), leaf.dtype)
            shards += [jax.device_put(values, device) for device in holders]
            continue
        buffers = [jnp.zeros(shape, leaf.dtype, device=device) for device in holders]
        for at in numbers:
            part = np.ascontiguousarray(tensor(at), leaf.dtype)
            buffers = [_set_on(device, buffer, part, at) for buffer, device in zip(buffers, holders, strict=True)]
            jax.block_until_ready(buffers)
        shards += buffers
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, shards)


def num_reads(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding, stacked: int) -> int:
    """Returns how often `from_tensors` reads a tensor, or a slice of one."""
    sizes = lambda index: (len(range(*part.indices(size))) for part, size in zip(index, leaf.shape, strict=True))
    return sum(math.prod(list(sizes(index))[:stacked]) for index, _ in _shards(leaf, sharding))


def _shards(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> list[tuple[Index, list[jax.Device]]]:
    """Returns the index of each shard in this process, and the devices that hold it."""
    found: dict[str, tuple[Index, list[jax.Device]]] = {}
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        assert index is not None  # only in the type stub
        found.setdefault(str(index), (index, []))[1].append(device)
    return list(found.values())


def _set_on(device: jax.Device, buffer: jax.Array, part: np.ndarray, at: tuple[int, ...]) -> jax.Array:
    with jax.set_mesh(make_mesh(devices=[device])):  # programs for one device are refused within the mesh of several
        return _set(buffer, jax.device_put(part, device), at)


@functools.partial(jax.jit, donate_argnums=0)
def _set(array: jax.Array, value: jax.Array, at: tuple[Any, ...]) -> jax.Array:
    """Returns the array with a slice along its leading axes replaced, in the memory of the given one."""
    value = value.reshape((1,) * len(at) + value.shape)
    return jax.lax.dynamic_update_slice(array, value, (*at, *[0] * (array.ndim - len(at))))
