"""A counter of requests in flight."""

import asyncio
import contextlib
from collections.abc import Iterator


class InFlight:
    """Counts requests in flight; the event `idle` is set while there are none."""

    def __init__(self):
        self._count, self.idle = 0, asyncio.Event()
        self.idle.set()

    @contextlib.contextmanager
    def track(self) -> Iterator[None]:
        """Counts one more request until the context ends."""
        self._count += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self.idle.set()
