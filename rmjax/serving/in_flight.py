"""A counter of requests in flight."""

import asyncio


class InFlight:
    """Counts requests in flight, each of which is a `with` block; the event `idle` is set while there are none."""

    def __init__(self):
        self._count, self.idle = 0, asyncio.Event()
        self.idle.set()

    def __enter__(self) -> None:
        self._count += 1
        if self._count == 1:
            self.idle.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self.idle.set()
