"""Which models' arrays lie on the devices: all, or with offload those of the model that works."""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import jax

from rmjax.core.errors import InputError
from rmjax.serving.metrics import ModelMetrics

_HOST = "pinned_host"


class Held:
    """The arrays in an attribute of an object, on the devices or in host memory.

    Args:
      owner: has them as a tree in `attribute`, and keeps no other reference to them.
      metrics: show how many bytes lie where.
    """

    def __init__(self, owner: Any, attribute: str, metrics: ModelMetrics):
        self._owner, self._attribute, self._metrics = owner, attribute, metrics
        arrays = getattr(owner, attribute)
        self._on_device = jax.tree.map(lambda array: array.sharding, arrays)
        self._on_host: Any = None
        self._size = sum(array.nbytes for array in jax.tree.leaves(arrays))
        self.here = True
        metrics.device_bytes.inc(self._size)

    def __del__(self):
        gauge = self._metrics.device_bytes if self.here else self._metrics.host_bytes
        gauge.dec(self._size)  # the model was replaced

    def leave(self) -> None:
        """Moves them to host memory, where they are not there yet.

        Raises:
          InputError: the devices know none.
        """
        if self.here:
            if self._on_host is None:
                self._on_host = jax.tree.map(_host_sharding, self._on_device)
            self._move(self._on_host, -self._size)

    def come(self) -> None:
        """Moves them to the devices, where they are not there yet."""
        if not self.here:
            self._move(self._on_device, self._size)

    def _move(self, shardings: Any, on_device: int) -> None:
        setattr(self._owner, self._attribute, jax.device_put(getattr(self._owner, self._attribute), shardings))
        self.here = not self.here
        self._metrics.device_bytes.inc(on_device)
        self._metrics.host_bytes.dec(on_device)


class Memory:
    """Has the models of a server take turns on its devices.

    Without `offload` everything stays on the devices, and models work side by side. With it one model works at a time;
    what another needs moves to the devices when it is needed, and what is not needed then moves to host memory. Values
    do not change.

    Args:
      offload: whether arrays move.
    """

    def __init__(self, offload: bool = False):
        self._offload, self._lock = offload, threading.Lock()
        self._held: weakref.WeakSet[Held] = weakref.WeakSet()  # a model that was replaced goes by itself

    def hold(self, owner: Any, attribute: str, metrics: ModelMetrics) -> Held:
        """Takes charge of the arrays in an attribute; they are on the devices only inside `using`, if they move.

        Raises:
          InputError: they should move, and the devices know no host memory.
        """
        held = Held(owner, attribute, metrics)
        if self._offload:
            with self._lock:
                held.leave()
                self._held.add(held)
        return held

    @contextlib.contextmanager
    def using(self, *held: Held) -> Iterator[None]:
        """Has these arrays on the devices."""
        if not self._offload:
            yield
            return
        with self._lock:
            for other in self._held.difference(held):  # first, to make room
                other.leave()
            for one in held:
                one.come()
            yield


def _host_sharding(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    device = next(iter(sharding.device_set))
    kinds = sorted(memory.kind for memory in device.addressable_memories())
    if _HOST not in kinds:
        raise InputError(f"device {device} has the memories {', '.join(kinds)} and no {_HOST!r} to offload to; serve "
                         "without --offload")  # fmt: skip
    return sharding.with_memory_kind(_HOST)
