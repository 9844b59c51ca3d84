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
      model: whose they are, for the metrics.
    """

    def __init__(self, owner: Any, attribute: str, model: str):
        self._owner, self._attribute, self.model = owner, attribute, model
        arrays = getattr(owner, attribute)
        self._on_device = jax.tree.map(lambda array: array.sharding, arrays)
        self._on_host: Any = None
        # Every device's own part or copy: that is what moves.
        self.size = sum(part.data.nbytes for array in jax.tree.leaves(arrays) for part in array.addressable_shards)
        self.here = True

    def leave(self) -> None:
        """Moves them to host memory, where they are not there yet; the devices' memory is free afterwards.

        Raises:
          InputError: the devices know none.
        """
        if self.here:
            if self._on_host is None:
                self._on_host = jax.tree.map(_host_sharding, self._on_device)
            self._move(self._on_host)

    def come(self) -> None:
        """Moves them to the devices, where they are not there yet."""
        if not self.here:
            self._move(self._on_device)

    def _move(self, shardings: Any) -> None:
        moved = jax.device_put(getattr(self._owner, self._attribute), shardings)
        setattr(self._owner, self._attribute, jax.block_until_ready(moved))
        self.here = not self.here


class Memory:
    """Has the models of a server take turns on its devices.

    Without `offload` everything stays on the devices, and models work side by side. With it one model works at a time;
    what another needs moves to the devices when it is needed, and what is not needed then moves to host memory. Values
    do not change. A model that is loaded or warmed up takes its turn too: the others wait.

    Args:
      offload: whether arrays move.
    """

    def __init__(self, offload: bool = False):
        self._offload = offload
        self._turn = threading.RLock()
        self._held: weakref.WeakSet[Held] = weakref.WeakSet()  # a model that was replaced goes by itself
        self._listing = threading.Lock()  # of `_held`; short, for metrics do not wait for turns

    def hold(self, owner: Any, attribute: str, metrics: ModelMetrics) -> Held:
        """Takes charge of the arrays in an attribute; they are on the devices only inside `using`, if they move.

        Raises:
          InputError: they should move, and the devices know no host memory.
        """
        held = Held(owner, attribute, metrics.model)
        with self.paused():
            if self._offload:
                held.leave()
            with self._listing:
                self._held.add(held)
        metrics.device_bytes.set_function(lambda: self._size(metrics.model, here=True))
        metrics.host_bytes.set_function(lambda: self._size(metrics.model, here=False))
        return held

    @contextlib.contextmanager
    def using(self, *held: Held) -> Iterator[None]:
        """Has these arrays, and no others, on the devices."""
        with self.paused():
            if self._offload:
                for other in set(self._all()).difference(held):  # first, to make room
                    other.leave()
                for one in held:
                    one.come()
            yield

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Has no arrays move, wherever they are; in the thread that is inside, `using` still moves them."""
        with self._turn if self._offload else contextlib.nullcontext():
            yield

    def _all(self) -> list[Held]:
        with self._listing:
            return list(self._held)

    def _size(self, model: str, here: bool) -> int:
        return sum(held.size for held in self._all() if held.model == model and held.here == here)


def _host_sharding(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
    device = next(iter(sharding.device_set))
    kinds = sorted(memory.kind for memory in device.addressable_memories())
    if _HOST not in kinds:
        raise InputError(
            f"device {device} has the memories {', '.join(kinds)} and no {_HOST!r} to offload to; serve "
            "without --offload"
        )
    return sharding.with_memory_kind(_HOST)
