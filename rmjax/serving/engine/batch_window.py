"""A short, adaptive wait for requests that are arriving, before a batch is formed."""

import asyncio
from collections.abc import Callable

MAX_WAIT = 0.004  # seconds
_MAX_IDLE_ITERATIONS = 64  # of the event loop without a new request, after which the wait ends
_MAX_SKIPPED = 31  # batches without a wait between two waits that found no new request


class BatchWindow:
    """Waits for requests that are arriving, so that they join the batch about to be formed.

    grpc.aio delivers requests one at a time, several event-loop iterations apart, so a batch formed at once would hold
    the first request only, at the cost of two thread switches per batch. A client that sends one request at a time
    should not wait: after a wait without a new request the next batches skip it, 1, 3, 7, ... up to 31 of them.
    """

    def __init__(self):
        self._skip = self._skips_left = 0

    async def wait(self, arrived: Callable[[], int]) -> None:
        """Waits until `arrived()`, the number of requests, is constant for 64 event-loop iterations; at most 4 ms."""
        if self._skips_left:
            self._skips_left -= 1
            return
        time = asyncio.get_running_loop().time
        first = last = arrived()
        idle, end = 0, time() + MAX_WAIT
        while idle < _MAX_IDLE_ITERATIONS and time() < end:
            await asyncio.sleep(0)
            now = arrived()
            idle = idle + 1 if now == last else 0
            last = now
        self._skip = 0 if last > first else min(2 * self._skip + 1, _MAX_SKIPPED)
        self._skips_left = self._skip
