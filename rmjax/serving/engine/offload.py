"""Placement of the models' arrays: all on the devices, or, with offload, only those of the model in use."""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import jax

from rmjax.core.errors import InputError
from rmjax.serving.metrics import ModelMetrics

_HOST = "pinned_host"


class OffloadableArrays:
    """The arrays in one attribute of an object, either on the devices or in host memory.

    Args:
      owner: holds the arrays as a pytree in `attribute`; must keep no other reference to them.
      model: value of the metrics' label `model`.
    """

    def __init__(self, owner: Any, attribute: str, model: str):
        self._owner, self._attribute, self.model = owner, attribute, model
        arrays = getattr(owner, attribute)
        self._shardings = jax.tree.map(lambda array: array.sharding, arrays)
        # In bytes, over all local devices: every shard and every replica counts.
        self.size = sum(shard.data.nbytes for array in jax.tree.leaves(arrays) for shard in array.addressable_shards)
        self.on_device = True

    def move(self, to_device: bool) -> None:
        """Moves the arrays to the devices, with their original shardings, or to host memory, unless they are there.

        Raises:
          InputError: the devices have no host memory.
        """
        if to_device != self.on_device:
            shardings = self._shardings if to_device else jax.tree.map(_host_sharding, self._shardings)
            moved = jax.device_put(getattr(self._owner, self._attribute), shardings)
            setattr(self._owner, self._attribute, jax.block_until_ready(moved))
            self.on_device = to_device


class DeviceMemory:
    """Shares the devices' memory among the models of a server.

    Without `offload` all arrays stay on the devices and models run concurrently. With it one model runs at a time, its
    load and warm-up included: the arrays it needs are moved to the devices first, all others to host memory.
    """

    def __init__(self, offload: bool = False):
        self._offload = offload
        # While it is held, `resident` waits in other threads, so no arrays are moved.
        self.lock: contextlib.AbstractContextManager[Any] = threading.RLock() if offload else contextlib.nullcontext()
        self._registered: weakref.WeakSet[OffloadableArrays] = weakref.WeakSet()  # replaced models drop out
        self._registry_lock = threading.Lock()  # held only briefly, so that metrics never wait for a model

    def register(self, owner: Any, attribute: str, metrics: ModelMetrics) -> OffloadableArrays:
        """Manages the arrays in an attribute; with offload they are on the devices only inside `resident`.

        Raises:
          InputError: offload is on, and the devices have no host memory.
        """
        arrays = OffloadableArrays(owner, attribute, metrics.model)
        with self.lock:
            if self._offload:
                arrays.move(to_device=False)
            with self._registry_lock:
                self._registered.add(arrays)
        metrics.device_bytes.set_function(lambda: self._bytes(metrics.model, on_device=True))
        metrics.host_bytes.set_function(lambda: self._bytes(metrics.model, on_device=False))
        return arrays

    @contextlib.contextmanager
    def resident(self, *arrays: OffloadableArrays) -> Iterator[None]:
        """Keeps these arrays on the devices; with offload, only these."""
        with self.lock:
            if self._offload:
                for other in set(self._all()).difference(arrays):  # first, to free device memory
                    other.move(to_device=False)
                for one in arrays:
                    one.move(to_device=True)
            yield

    def _all(self) -> list[OffloadableArrays]:
        with self._registry_lock:
            return list(self._registered)

    def _bytes(self, model: str, on_device: bool) -> int:
        return sum(one.size for one in self._all() if (one.model, one.on_device) == (model, on_device))


def _host_sharding(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    device: Any = next(iter(sharding.device_set))
    kinds = sorted(memory.kind for memory in device.addressable_memories())
    if _HOST not in kinds:
        raise InputError(
            f"device {device} has memory kinds {', '.join(kinds)}; expected {_HOST!r} for offload: serve without "
            "--offload"
        )
    return sharding.with_memory_kind(_HOST)
