"""The engine: a bounded queue, batches by tokens, one thread that scores."""

import asyncio
import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.packing import make_tree
from rmjax.data.schema import Tree

Score = Callable[[Sequence[Tree]], list[np.ndarray]]


class RequestError(InputError):
    """A request that cannot be answered as it is; the message names its tensor."""


class Overloaded(Exception):
    """The queue is full; the same request may succeed later."""


class NotServing(Exception):
    """The server warms up or drains."""


class NotFinite(Exception):
    """The model gave a reward that is no number."""


@dataclasses.dataclass(frozen=True)
class _Waiting:
    tree: Tree
    answer: asyncio.Future


class Engine:
    """Scores token sequences of concurrent requests in shared batches.

    While a batch is scored, requests gather; the next batch takes as many as fill it. So batches grow with the load,
    and a lone request never waits for company.

    Args:
      score: trees to rewards [readouts, A] each; called in one thread.
      warm_up: called in that thread before anything is served.
      max_length: tokens of the longest sequence; longer ones are refused, never cut.
      batch_tokens: tokens after which a batch is full.
      queue_size: sequences that may wait; more are refused with `Overloaded`.
    """

    def __init__(
        self, score: Score, warm_up: Callable[[], None], *, max_length: int, batch_tokens: int, queue_size: int
    ):
        if queue_size < 1:
            raise InputError(f"queue is {queue_size}; expected room for at least one sequence")
        self.max_length, self.ready = max_length, False
        self._score, self._warm_up = score, warm_up
        self._batch_tokens, self._queue_size = batch_tokens, queue_size
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._arrived = asyncio.Event()
        self._closing = False
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="score")
        self._task: asyncio.Task | None = None

    async def start(self) -> None:
        """Warms up; requests are taken from then on."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._warm_up)
        self._task = asyncio.create_task(self._run())
        self.ready = True

    async def drain(self) -> None:
        """Refuses new requests, answers those that wait, and ends."""
        self.ready, self._closing = False, True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    async def submit(self, sequences: Sequence[np.ndarray], source: str) -> np.ndarray:
        """Returns the rewards of n sequences, float32 [n, A], read at their last tokens.

        A call that is cancelled leaves the queue.

        Args:
          sequences: int [length] each.
          source: the tensor they came in, for messages.

        Raises:
          RequestError: a sequence is empty or too long, or there are more than the queue holds.
          Overloaded, NotServing, NotFinite: see there.
        """
        trees = [self._tree(row, sequence, source) for row, sequence in enumerate(sequences)]
        if len(trees) > self._queue_size:
            raise RequestError(f"tensor {source!r} holds {len(trees)} sequences; at most {self._queue_size} fit into "
                               "the queue: send fewer at a time, or raise --queue")  # fmt: skip
        if not self.ready:
            raise NotServing("the server is draining" if self._closing else "the server is still warming up")
        if len(self._waiting) + len(trees) > self._queue_size:
            raise Overloaded(f"{len(self._waiting)} sequences wait and {len(trees)} more do not fit into the queue of "
                             f"{self._queue_size}; try again later")  # fmt: skip
        loop = asyncio.get_running_loop()
        own = [_Waiting(tree, loop.create_future()) for tree in trees]
        self._waiting.extend(own)
        self._arrived.set()
        try:
            return np.stack(await asyncio.gather(*(item.answer for item in own)))
        except BaseException:  # cancelled, or one of them failed: nobody waits for the others any more
            for item in own:
                item.answer.cancel()
            self._waiting = collections.deque(item for item in self._waiting if not item.answer.done())
            raise

    def _tree(self, row: int, sequence: np.ndarray, source: str) -> Tree:
        if not len(sequence):
            raise RequestError(f"tensor {source!r}, row {row} has no tokens; expected at least one")
        if len(sequence) > self.max_length:
            raise RequestError(f"tensor {source!r}, row {row} has {len(sequence)} tokens; at most {self.max_length} "
                               "are scored, and nothing is truncated: shorten it, or raise --max_length")  # fmt: skip
        return make_tree([sequence])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting or not self._closing:
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            batch = self._take()
            try:
                rewards = await loop.run_in_executor(self._thread, self._score, [item.tree for item in batch])
            except Exception as error:  # whatever the device raises: this batch fails, the server goes on
                rewards = [error] * len(batch)
            for item, found in zip(batch, rewards, strict=True):
                _answer(item.answer, found)

    def _take(self) -> list[_Waiting]:
        """Takes the sequences that fill a batch, the longest-waiting first; at least one."""
        batch, tokens = [], 0
        while self._waiting and (not batch or tokens + self._waiting[0].tree.length <= self._batch_tokens):
            batch.append(self._waiting.popleft())
            tokens += batch[-1].tree.length
        return batch


def _answer(answer: asyncio.Future, found: np.ndarray | Exception) -> None:
    if answer.done():  # its call was cancelled meanwhile
        return
    if isinstance(found, Exception):
        answer.set_exception(found)
    elif np.isfinite(found).all():
        answer.set_result(found[0])
    else:
        answer.set_exception(NotFinite(f"the model's reward is {found[0].tolist()}, not finite"))
