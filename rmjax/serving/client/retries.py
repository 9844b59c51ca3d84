"""Attempts of a request: which failures are retried, for how long, and what is said meanwhile."""

import asyncio
import random
import time
import warnings
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
_MAX_BACKOFF, _MAX_POLL = 10.0, 1.0  # seconds between two attempts, in general and for a server that is starting
WARN_SECONDS = 5.0  # of retries, before the warning


class ServerError(Exception):
    """The server cannot be reached, refused a request, or did not answer in time."""


class Failure(Exception):
    """An attempt failed, and the same request may succeed later.

    Attributes:
      text: what happened.
      fix: what to do about it, appended to the text of the last attempt.
      reached: whether there is a server, so that it is waited for until the timeout.
      answered: whether it is a server of rmjax.
      retry_after: seconds, as the server asks.
    """

    def __init__(
        self, text: str, fix: str = "", *, reached: bool = True, answered: bool = False, retry_after: float = 0.0
    ):
        super().__init__(text)
        self.text, self.fix, self.reached, self.answered, self.retry_after = text, fix, reached, answered, retry_after


class Retries:
    """Repeats the attempts of requests, which change no state of the server.

    Args:
      timeout: seconds until a request must be answered, over all attempts.
      wait: seconds to wait for a server that never answered and cannot be reached.
    """

    def __init__(self, url: str, timeout: float, wait: float):
        self._url, self._timeout, self._wait = url, timeout, wait
        self._answered = self._warned = False

    async def run(self, attempt: Callable[[float], Awaitable[T]]) -> T:
        """Returns the result of `attempt`, which is called with the seconds left, and raises `Failure`.

        Raises:
          ServerError: there was no success in time, or the attempt raised it.
        """
        first = started = time.monotonic()
        backoff = 0.05
        while True:
            limit, deadline, max_backoff = self._timeout, started + self._timeout, _MAX_BACKOFF
            try:
                result = await attempt(max(deadline - time.monotonic(), 0.001))
            except Failure as error:
                failure = error
                self._answered = self._answered or failure.answered
                if not self._answered and not failure.reached:
                    # There may be no server. The timeout starts when there is one.
                    limit, deadline, max_backoff, started = self._wait, first + self._wait, _MAX_POLL, time.monotonic()
            else:
                self._answered = True
                return result
            # Random jitter, so that clients refused together do not retry together.
            pause = max(min(backoff, max_backoff), failure.retry_after) * random.uniform(0.5, 1.5)
            now = time.monotonic()
            if now + pause >= deadline:
                waited = f"no success within {limit:g} seconds; in the last attempt " if limit else ""
                raise ServerError(f"{self._url}: {waited}{failure.text}{failure.fix}") from failure
            if now - first > WARN_SECONDS and not self._warned:
                self._warned = True
                warnings.warn(
                    f"{self._url}: retrying for {now - first:.0f} of at most {limit:g} seconds; in the last attempt "
                    f"{failure.text}",
                    stacklevel=2,
                )
            await asyncio.sleep(pause)
            backoff *= 2
