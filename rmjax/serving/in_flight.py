"""What is in progress, and when it has ended."""

import asyncio
import contextlib
from collections.abc import Iterator


class Progress:
    """Counts what is in progress; `idle` is set while nothing is."""

    def __init__(self):
        self._count, self.idle = 0, asyncio.Event()
        self.idle.set()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Counts what is done in it as one more."""
        self._count += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self.idle.set()
