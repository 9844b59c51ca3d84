"""When to stop waiting for company."""

import asyncio
from collections.abc import Callable

_QUIET_TURNS = 64  # of the event loop without anyone arriving, after which nobody else is expected
LONGEST = 0.004  # seconds
_LONGEST_PAUSE = 31  # batches between two attempts where nobody ever comes


class Gathering:
    """Lets those arrive who are on their way, before work begins that is done for all at once.

    A face hands its requests over one by one (grpc.aio: one in several turns of the event loop), so work that began at
    the first one would be done for it alone, and a change of threads for each costs more than the wait. Whoever is
    alone should not wait: after an attempt to which nobody came, the next ones are left out, more and more of them.
    """

    def __init__(self):
        self._pause = self._left = 0  # attempts to leave out after this one; still to be left out

    async def __call__(self, arrived: Callable[[], int]) -> None:
        """Waits as long as somebody arrives within a few turns of the event loop, 4 ms at most.

        Args:
          arrived: how many are there now.
        """
        if self._left:
            self._left -= 1
            return
        time = asyncio.get_running_loop().time
        first = last = arrived()
        quiet, ends = 0, time() + LONGEST
        while quiet < _QUIET_TURNS and time() < ends:
            await asyncio.sleep(0)
            now = arrived()
            quiet = quiet + 1 if now == last else 0
            last = now
        self._pause = 0 if last > first else min(2 * self._pause + 1, _LONGEST_PAUSE)
        self._left = self._pause
