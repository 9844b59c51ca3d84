"""A thread that runs functions for an event loop."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple


class _Work(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    future: asyncio.Future[Any]


class Worker:
    """Runs functions one after the other in a thread of its own, in the order of the calls.

    Instead of an executor of one thread: `run_in_executor` makes two futures and chains them, which doubles the cost of
    passing a batch to the thread and back.

    Args:
      name: of the thread.
    """

    def __init__(self, name: str):
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns `function(*arguments)`, called in the thread even if the caller is cancelled; raises its error."""
        future = asyncio.get_running_loop().create_future()
        self._queue.put(_Work(function, arguments, future))
        return await future

    def close(self) -> None:
        """Waits for the functions that were passed to `run`, and stops the thread."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            found, error = None, None
            try:
                found = work.function(*work.arguments)
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                work.future.get_loop().call_soon_threadsafe(_finish, work.future, found, error)
            del work, found, error  # not kept until the next call


def _finish(future: asyncio.Future[Any], found: Any, error: BaseException | None) -> None:
    if future.done():  # cancelled
        return
    if error is None:
        future.set_result(found)
    else:
        future.set_exception(error)
