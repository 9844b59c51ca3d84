"""Bounded request queue: admission control, fair batching by tokens, and one scoring thread.

Axis letters: n sequences of a request, A attributes.
"""

import asyncio
import collections
import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Sequence

import numpy as np

from rmjax.core.errors import InputError, non_finite_error
from rmjax.data.tokens.trees import common_prefix_length
from rmjax.serving.engine.batch import Score, score_batch
from rmjax.serving.engine.batch_window import MAX_WAIT, BatchWindow
from rmjax.serving.engine.prefixes import PrefixSet
from rmjax.serving.engine.worker import Worker
from rmjax.serving.errors import DeadlineExceeded, InputName, NotFinite, Overloaded, RequestError, Unavailable
from rmjax.serving.metrics import Metrics, ModelMetrics

_RESERVED_SHARE = 1 / 8  # of the queue, for clients without queued sequences, so that no client blocks the others
_MAX_RETRY_AFTER = 30.0  # seconds


@dataclasses.dataclass(eq=False)
class _Request:
    sequences: list[np.ndarray]
    client: str
    deadline: float
    future: asyncio.Future[np.ndarray]  # gets `rewards` once all n sequences are scored
    batched: int = 0  # sequences that have left the queue
    scored: int = 0
    rewards: np.ndarray | None = None  # float32 [n, A], 0 where not scored yet


class Engine:
    """Scores token sequences of concurrent requests in shared batches.

    While a batch is scored, requests are queued; the next batch takes as many sequences as fit, round-robin over
    clients. Sequences with a common prefix become one tree, so that the prefix is computed once. A reward does not
    depend on the other sequences of its batch, beyond float rounding.

    Args:
      score, warm_up: called in the scoring thread; `warm_up` before the first request.
      max_length: tokens of the longest sequence and of the largest tree; longer sequences are rejected, not truncated.
      batch_tokens: unique tokens of a full batch.
      queue_size, queue_tokens: capacity of the queue; requests beyond it are rejected with `Overloaded`.
    """

    def __init__(
        self,
        score: Score,
        warm_up: Callable[[], None],
        *,
        max_length: int,
        batch_tokens: int,
        queue_size: int,
        queue_tokens: int = 1 << 22,
        metrics: ModelMetrics | None = None,
    ):
        if queue_size < 1:
            raise InputError(f"queue is {queue_size}; expected at least 1 sequence")
        if queue_tokens < max_length:
            raise InputError(f"queue_tokens is {queue_tokens}; expected at least max_length = {max_length}")
        self.max_length, self.queue_size, self.queue_tokens, self.ready = max_length, queue_size, queue_tokens, False
        self.metrics = metrics or ModelMetrics(Metrics(), "")
        self._score, self._warm_up, self._batch_tokens = score, warm_up, batch_tokens
        self._clients: dict[str, collections.deque[_Request]] = {}  # queued requests; in round-robin order
        self._sequences = self._tokens = 0  # queued
        # Decaying maximum, and moving average (above batch_tokens where prefixes are shared), over recent batches.
        self._batch_seconds, self._tokens_per_batch = 0.0, float(batch_tokens)
        self._busy = self._draining = False
        self._arrived = asyncio.Event()
        self._worker = Worker("score")
        self._task: asyncio.Task | None = None

    async def start(self) -> None:
        """Warms up; requests are accepted from then on."""
        await self._worker.run(self._warm_up)
        await self._worker.run(self.metrics.count_compilations)
        self._task = asyncio.create_task(self._run())
        self.metrics.waiting_sequences.set_function(lambda: self._sequences)
        self.metrics.waiting_tokens.set_function(lambda: self._tokens)
        self.ready = True

    async def drain(self) -> None:
        """Rejects new requests, completes the queued ones, and stops the scoring thread."""
        self.ready, self._draining = False, True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._worker.close()

    def admit(self, source: InputName, sequences: int, tokens: int = 0, *, ahead: int = 0, client: str = "") -> None:
        """Raises the error with which a request of this size would be rejected now, if any.

        Args:
          source: of the sequences.
          tokens: 0 if not known yet.
          ahead: sequences that will enter the queue before these.
        """
        capacity = lambda: f"the queue of {_amount(self.queue_size, self.queue_tokens)}"
        if sequences > self.queue_size or tokens > self.queue_tokens:
            fix = "send fewer per request, or raise the server's --queue and --queue_tokens"
            size = _amount(sequences, tokens)
            raise RequestError(f"{source.text} holds {size}, which can never fit into {capacity()}: {fix}")
        if not self.ready:
            state = "draining: it accepts no more requests" if self._draining else "still warming up: retry later"
            raise Unavailable(f"the server is {state}")
        share = 1 - _RESERVED_SHARE if client in self._clients else 1.0
        full = self._sequences + ahead + sequences > math.ceil(share * self.queue_size)
        if full or self._tokens + tokens > math.ceil(share * self.queue_tokens):
            queued = f"{_amount(self._sequences + ahead, self._tokens)} are queued"
            size = _amount(sequences, tokens)
            # The time to process half of the queue: other clients rejected now will return at about the same time.
            retry_after = min(max(self._expected_wait() / 2, 0.1), _MAX_RETRY_AFTER)
            raise Overloaded(f"{queued}; {size} more do not fit into {capacity()}: retry later", retry_after)

    async def submit(
        self, sequences: Sequence[np.ndarray], source: InputName, *, client: str = "", deadline: float = math.inf
    ) -> np.ndarray:
        """Returns the rewards of n sequences, float32 [n, A].

        On cancellation or at the deadline, sequences that are not yet being scored leave the queue.

        Args:
          sequences: int [length] each.
          source: of the sequences.
          client: name for round-robin scheduling.
          deadline: time of the event loop's clock, in seconds.

        Raises:
          RequestError: a sequence is empty or too long, or there are more than the queue can ever hold.
          Overloaded, Unavailable, NotFinite, DeadlineExceeded: see `rmjax.serving.errors`.
        """
        if not sequences:
            raise RequestError(f"{source.text} holds no sequences; expected at least one")
        arrays = [check_sequence(row, sequence, source, self.max_length) for row, sequence in enumerate(sequences)]
        tokens = sum(map(len, arrays))
        self.admit(source, len(arrays), tokens, client=client)
        loop = asyncio.get_running_loop()
        if (time_left := deadline - loop.time()) <= 0:
            raise DeadlineExceeded("the deadline passed before the request was queued")
        # A request that would expire in the queue is rejected at once, since it would only delay others.
        if (wait := self._expected_wait()) > time_left:
            expected = f"expected time to an answer {wait:.2g} seconds, but the deadline is in {time_left:.2g} seconds"
            raise Overloaded(f"{self._tokens} tokens are queued, {expected}: retry later", wait)
        request = _Request(arrays, client, deadline, loop.create_future())
        self._clients.setdefault(client, collections.deque()).append(request)
        self._count_queued(len(arrays), tokens)
        self._arrived.set()
        timer = loop.call_at(deadline, self._expire, request) if deadline < math.inf else None
        try:
            return await request.future
        finally:
            if timer is not None:
                timer.cancel()
            self._dequeue(request)

    def _expected_wait(self) -> float:
        """Returns an upper estimate of the seconds until a request arriving now is answered; 0 if scored at once."""
        # Batches are assumed full and as slow as the slowest recent one: short batches do not predict full ones.
        batches = self._tokens / self._tokens_per_batch + self._busy
        return self._batch_seconds * (batches + 1) if batches else 0.0

    def _count_queued(self, sequences: int, tokens: int) -> None:
        self._sequences += sequences
        self._tokens += tokens

    def _expire(self, request: _Request) -> None:
        self._fail(request, DeadlineExceeded("the deadline passed before the request was scored"))

    def _fail(self, request: _Request, error: Exception) -> None:
        if not request.future.done():
            request.future.set_exception(error)
        self._dequeue(request)

    def _dequeue(self, request: _Request) -> None:
        """Removes those sequences of a request from the queue that are still in it."""
        if queued := request.sequences[request.batched :]:
            request.batched = len(request.sequences)
            requests = self._clients[request.client]
            requests.remove(request)
            if not requests:
                del self._clients[request.client]
            self._count_queued(-len(queued), -sum(map(len, queued)))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        window, waited = BatchWindow(), False
        while self._clients or not self._draining:
            if self._clients and not waited and not self._draining:
                await window.wait(lambda: self._sequences)
            batch, prefixes = self._next_batch(loop.time())
            if not batch:
                self._arrived.clear()
                await self._arrived.wait()
                waited = False
                continue
            started, self._busy = loop.time(), True
            rewards, errors, unique = await self._worker.run(score_batch, self._score, prefixes, self.max_length)
            self._busy = False
            tokens, seconds = sum(map(len, prefixes.sequences)), loop.time() - started
            waited = seconds > MAX_WAIT  # requests had time to arrive meanwhile
            self._batch_seconds = max(seconds, 0.9 * self._batch_seconds)
            self._tokens_per_batch += 0.2 * (max(tokens, self._batch_tokens) - self._tokens_per_batch)
            self.metrics.batches.inc()
            self.metrics.sequences.inc(len(batch))
            self.metrics.tokens.inc(tokens)
            self.metrics.unique_tokens.inc(unique)
            finite, stop = bool(np.isfinite(rewards).all()), 0
            for request, entries in itertools.groupby(batch, key=operator.itemgetter(0)):
                rows = [row for _, row in entries]  # consecutive
                start, stop = stop, stop + len(rows)
                error = next((errors[i] for i in range(start, stop) if i in errors), None)
                self._complete(request, rows[0], rewards[start:stop], error, finite)

    def _next_batch(self, now: float) -> tuple[list[tuple[_Request, int]], PrefixSet]:
        """Removes the sequences of a batch from the queue and returns them as (request, index in it), and as prefixes.

        Round-robin over clients: a turn is one sequence, and those after it in its request that share half of their
        tokens or more, so that samples of one prompt stay together.
        """
        batch: list[tuple[_Request, int]] = []
        prefixes, room = PrefixSet(), float(self._batch_tokens)
        while self._clients:
            client, requests = next(iter(self._clients.items()))
            request = requests[0]
            if request.deadline <= now:  # its timer is due and has not run yet
                self._expire(request)
                continue
            sequence = request.sequences[request.batched]
            shared = prefixes.add(sequence, room if batch else math.inf)
            if shared is None:
                break
            batch.append((request, request.batched))
            room -= len(sequence) - shared
            request.batched += 1
            rest = request.sequences[request.batched : request.batched + 1]
            if not rest:
                requests.popleft()
            if not rest or (len(self._clients) > 1 and 2 * common_prefix_length(sequence, rest[0]) < len(rest[0])):
                self._end_turn(client)
        if batch and next(iter(self._clients), None) == batch[-1][0].client:
            self._end_turn(batch[-1][0].client)  # the batch is full; the next one begins with another client
        self._count_queued(-len(batch), -sum(map(len, prefixes.sequences)))
        return batch, prefixes

    def _end_turn(self, client: str) -> None:
        if requests := self._clients.pop(client):
            self._clients[client] = requests

    def _complete(
        self, request: _Request, first: int, rewards: np.ndarray, error: Exception | None, finite: bool
    ) -> None:
        """Stores the rewards [k, A] of k sequences of a request, from index `first` on, or fails the request.

        Args:
          finite: whether all rewards of the batch are finite.
        """
        if request.future.done():  # cancelled, expired or failed
            return
        if error is not None:
            return self._fail(request, error)
        if request.rewards is None:
            request.rewards = np.zeros((len(request.sequences), rewards.shape[1]), np.float32)
        request.rewards[first : first + len(rewards)] = rewards
        request.scored += len(rewards)
        message = None if finite else non_finite_error("rewards", request.rewards, "check the model's weights")
        if message:
            self._fail(request, NotFinite(message))
        elif request.scored == len(request.sequences):
            request.future.set_result(request.rewards)


def check_sequence(row: int, sequence: np.ndarray, source: InputName, max_length: int) -> np.ndarray:
    """Returns a sequence as int32 [length].

    Raises:
      RequestError: it is empty or longer than max_length.
    """
    if not len(sequence):
        raise RequestError(f"{source.row(row)} has no tokens; expected at least one")
    if len(sequence) > max_length:
        raise RequestError(
            f"{source.row(row)} has {len(sequence)} tokens; expected at most {max_length}, the model's maximum: "
            "shorten it, request truncation, or raise the server's --max_length"
        )
    return np.ascontiguousarray(sequence, np.int32)


def _amount(sequences: int, tokens: int) -> str:
    """Returns the size of a request or queue as text; `tokens` 0: not known."""
    parts = [(sequences, "sequence"), *([(tokens, "token")] if tokens else [])]
    return " with ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in parts)
