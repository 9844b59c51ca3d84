"""The engine: a bounded queue, batches by tokens with shared prompts, one thread that scores."""

import asyncio
import collections
import concurrent.futures
import itertools
import math
import operator
from collections.abc import Callable, Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.tokens.trees import shared_length
from rmjax.serving.engine.batch import Score, score_batch
from rmjax.serving.engine.gathering import LONGEST, Gathering
from rmjax.serving.engine.prefixes import PrefixSet
from rmjax.serving.errors import DeadlinePassed, NotFinite, NotServing, Overloaded, RequestError
from rmjax.serving.metrics import Metrics, ModelMetrics

_KEPT = 1 / 8  # of the queue is for clients of whom nothing waits yet
_LONGEST_RETRY = 30.0  # seconds that a refused client is told to wait at most


class _Call:
    """One call of `submit`.

    Attributes:
      answer: the rewards of all its sequences, once `missing` is 0.
      taken: sequences that are no longer waiting.
      rewards: float32 [n, A] of its n sequences, from the first batch on that has any of them.
    """

    def __init__(self, sequences: list[np.ndarray], client: str, deadline: float, answer: asyncio.Future):
        self.sequences, self.client, self.deadline, self.answer = sequences, client, deadline, answer
        self.taken, self.missing = 0, len(sequences)
        self.rewards: np.ndarray | None = None

    @property
    def waiting(self) -> list[np.ndarray]:
        return self.sequences[self.taken :]


Taken = list[tuple[_Call, int]]  # a batch: (call, row) of each sequence


class Engine:
    """Scores token sequences of concurrent requests in shared batches.

    While a batch is scored, requests gather; the next batch takes as many as fill it, the clients in turn, and those
    that are just arriving. So batches grow with the load, and a lone request does not wait for company (`Gathering`).
    Sequences of a batch that begin alike, of one call or several, become one tree: what they share is computed once. A
    reward does not depend on what else is in the batch, beyond float rounding.

    Args:
      score: trees to rewards [readouts, A] each; called in one thread.
      warm_up: called in that thread before anything is served.
      max_length: tokens of the longest sequence, and of the largest tree; longer sequences are refused, never cut.
      batch_tokens: unique tokens after which a batch is full.
      queue_size, queue_tokens: sequences and tokens that may wait; more are refused with `Overloaded`.
      metrics: counts; None counts for nobody.
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
            raise InputError(f"queue is {queue_size}; expected room for at least one sequence")
        if queue_tokens < max_length:
            raise InputError(
                f"queue_tokens is {queue_tokens}; expected room for one sequence of max_length = {max_length}"
            )
        self.max_length, self.queue_size, self.queue_tokens, self.ready = max_length, queue_size, queue_tokens, False
        self.metrics = metrics or ModelMetrics(Metrics(), "")
        self._score, self._warm_up, self._batch_tokens = score, warm_up, batch_tokens
        # The clients that wait, whose turn it is first, and the calls of each.
        self._clients: dict[str, collections.deque[_Call]] = {}
        self._sequences = self._tokens = 0  # that wait
        self._batch_seconds, self._tokens_per_batch = 0.0, float(batch_tokens)  # of late, at the slowest and on average
        self._busy = False
        self._arrived = asyncio.Event()
        self._closing = False
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="score")
        self._task: asyncio.Task | None = None

    async def start(self) -> None:
        """Warms up; requests are taken from then on."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._warm_up)
        await loop.run_in_executor(self._thread, self.metrics.count_compilations)
        self._task = asyncio.create_task(self._run())
        self.ready = True

    async def drain(self) -> None:
        """Refuses new requests, answers those that wait, and ends."""
        self.ready, self._closing = False, True
        self._arrived.set()
        if self._task is not None:
            await self._task
        self._thread.shutdown()

    def admit(self, source: str, sequences: int, tokens: int = 0, *, ahead: int = 0, client: str = "") -> None:
        """Raises the error with which a call of so many sequences and tokens would be refused now, if any.

        A part of the queue is kept for clients of whom nothing waits yet, so that nobody shuts the others out.

        Args:
          source: the tensor they come in, for messages.
          tokens: 0 where they are not known yet.
          ahead: sequences that will be in the queue before them.
        """
        size = f"{sequences} sequences" + (f" of {tokens} tokens in all" if tokens else "")
        most = f"the queue of {self.queue_size} with {self.queue_tokens} tokens"
        if sequences > self.queue_size or tokens > self.queue_tokens:
            raise RequestError(
                f"tensor {source!r} holds {size}, which can never fit into {most}: send fewer at a "
                "time, or raise --queue and --queue_tokens"
            )
        if not self.ready:
            raise NotServing("the server is draining" if self._closing else "the server is still warming up")
        kept = _KEPT if client in self._clients else 0.0
        full = self._sequences + ahead + sequences > self.queue_size - int(kept * self.queue_size)
        if full or self._tokens + tokens > self.queue_tokens - int(kept * self.queue_tokens):
            # When half of the queue is worked off; the others that are refused now come back then as well.
            retry = min(max(self._wait() / 2, 0.1), _LONGEST_RETRY)
            raise Overloaded(
                f"{self._sequences + ahead} sequences of {self._tokens} tokens wait and {size} more do "
                f"not fit into {most}; try again later",
                retry,
            )

    async def submit(
        self, sequences: Sequence[np.ndarray], source: str, *, client: str = "", deadline: float = math.inf
    ) -> np.ndarray:
        """Returns the rewards of n sequences, float32 [n, A], read at their last tokens.

        A call that is cancelled leaves the queue, and so does one whose deadline passes: what of it is not yet being
        scored never will be.

        Args:
          sequences: int [length] each.
          source: the tensor they came in, for messages.
          client: whose turn this is; clients that wait are served in turn.
          deadline: as of the event loop's clock.

        Raises:
          RequestError: a sequence is empty or too long, or they are more than the queue can ever hold.
          Overloaded, NotServing, NotFinite, DeadlinePassed: see there.
        """
        if not sequences:
            raise RequestError(f"tensor {source!r} holds no sequences; expected at least one")
        arrays = [check_sequence(row, sequence, source, self.max_length) for row, sequence in enumerate(sequences)]
        tokens = sum(map(len, arrays))
        self.admit(source, len(arrays), tokens, client=client)
        loop = asyncio.get_running_loop()
        if deadline <= loop.time():
            raise DeadlinePassed("the deadline had passed before the request was queued")
        # What would expire in the queue is refused at once: it would only keep others waiting.
        if (wait := self._wait()) > deadline - loop.time():
            raise Overloaded(
                f"{self._tokens} tokens wait; an answer would take about {wait:.2g} seconds, and the "
                f"deadline is in {deadline - loop.time():.2g}; try again later",
                wait,
            )
        call = _Call(arrays, client, deadline, loop.create_future())
        self._clients.setdefault(client, collections.deque()).append(call)
        self._waits(len(arrays), tokens)
        self._arrived.set()
        timer = loop.call_at(deadline, self._expire, call) if deadline < math.inf else None
        try:
            return await call.answer
        finally:
            if timer is not None:
                timer.cancel()
            self._leave(call)

    def _wait(self) -> float:
        """Returns the seconds until a request that came now would be answered; 0 where it would be scored at once.

        Judged by the slower ones of the last batches, and in full batches, of more than `batch_tokens` where prompts
        have been shared: a batch of one short sequence says little of a full one.
        """
        before = self._tokens / self._tokens_per_batch + self._busy
        return self._batch_seconds * (before + 1) if before else 0.0

    def _waits(self, sequences: int, tokens: int) -> None:
        """Adds to what waits."""
        self._sequences += sequences
        self._tokens += tokens
        self.metrics.waiting_sequences.set(self._sequences)
        self.metrics.waiting_tokens.set(self._tokens)

    def _expire(self, call: _Call) -> None:
        self._fail(call, DeadlinePassed("the deadline passed before the request was scored"))

    def _fail(self, call: _Call, error: Exception) -> None:
        if not call.answer.done():
            call.answer.set_exception(error)
        self._leave(call)

    def _leave(self, call: _Call) -> None:
        """Takes what of a call still waits out of the queue."""
        if waiting := call.waiting:
            call.taken = len(call.sequences)
            calls = self._clients[call.client]
            calls.remove(call)
            if not calls:
                del self._clients[call.client]
            self._waits(-len(waiting), -sum(map(len, waiting)))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        gather, gathered = Gathering(), False
        while self._clients or not self._closing:
            if self._clients and not gathered and not self._closing:  # what drains lets nobody in
                await gather(lambda: self._sequences)
            batch, prefixes = self._take(loop.time())
            if not batch:
                self._arrived.clear()
                await self._arrived.wait()
                gathered = False
                continue
            began = loop.time()
            self._busy = True
            rewards, errors, unique = await loop.run_in_executor(
                self._thread, score_batch, self._score, prefixes, self.max_length
            )
            self._busy = False
            tokens, seconds = sum(map(len, prefixes.sequences)), loop.time() - began
            gathered = seconds > LONGEST  # who was on the way is there
            self._batch_seconds = max(seconds, 0.9 * self._batch_seconds)
            self._tokens_per_batch += 0.2 * (max(tokens, self._batch_tokens) - self._tokens_per_batch)
            self.metrics.batches.inc()
            self.metrics.sequences.inc(len(batch))
            self.metrics.tokens.inc(tokens)
            self.metrics.unique_tokens.inc(unique)
            first = 0
            for call, taken in itertools.groupby(batch, key=operator.itemgetter(0)):
                rows = [row for _, row in taken]  # one after the other
                last = first + len(rows)
                self._answer(call, rows[0], rewards[first:last], [errors[i] for i in errors if first <= i < last])
                first = last

    def _take(self, now: float) -> tuple[Taken, PrefixSet]:
        """Takes the sequences that fill a batch, the clients in turn; at least one where any waits.

        A turn is one sequence, and those after it in the call that share half of their tokens or more: samples of one
        prompt stay together.
        """
        batch: Taken = []
        prefixes, room = PrefixSet(), float(self._batch_tokens)
        sequences = tokens = 0
        while self._clients:
            client, calls = next(iter(self._clients.items()))
            call = calls[0]
            if call.deadline <= now:  # its timer has not come to it yet
                self._expire(call)
                continue
            sequence = call.sequences[call.taken]
            known = prefixes.add(sequence, room if batch else math.inf)
            if known is None:
                break
            batch.append((call, call.taken))
            room -= len(sequence) - known
            sequences, tokens = sequences + 1, tokens + len(sequence)
            call.taken += 1
            following = call.sequences[call.taken] if call.taken < len(call.sequences) else None
            if following is None:
                calls.popleft()
            if following is None or (
                len(self._clients) > 1 and 2 * shared_length(sequence, following) < len(following)
            ):
                self._end_turn(client)
        if batch and next(iter(self._clients), None) == batch[-1][0].client:
            self._end_turn(batch[-1][0].client)  # the batch is full; the next one begins with somebody else
        self._waits(-sequences, -tokens)
        return batch, prefixes

    def _end_turn(self, client: str) -> None:
        if calls := self._clients.pop(client):
            self._clients[client] = calls

    def _answer(self, call: _Call, first: int, rewards: np.ndarray, errors: list[Exception]) -> None:
        """Gives a call the rewards [k, A] of its k sequences from `first` on, or the error of one of them."""
        if call.answer.done():  # cancelled, expired, or another of its sequences failed
            return
        if not errors and not np.isfinite(rewards).all():
            row = int(np.flatnonzero(~np.isfinite(rewards).all(axis=1))[0])
            reward = rewards[row].tolist()
            errors = [NotFinite(f"the model's reward of sequence {first + row} is {reward}, not finite")]
        if errors:
            self._fail(call, errors[0])
            return
        if call.rewards is None:
            call.rewards = np.empty((len(call.sequences), rewards.shape[1]), np.float32)
        call.rewards[first : first + len(rewards)] = rewards
        call.missing -= len(rewards)
        if not call.missing:
            call.answer.set_result(call.rewards)


def check_sequence(row: int, sequence: np.ndarray, source: str, max_length: int) -> np.ndarray:
    """Returns a sequence as int32 [length].

    Raises:
      RequestError: it is empty or longer than max_length.
    """
    if not len(sequence):
        raise RequestError(f"tensor {source!r}, row {row} has no tokens; expected at least one")
    if len(sequence) > max_length:
        raise RequestError(
            f"tensor {source!r}, row {row} has {len(sequence)} tokens; at most {max_length} are scored, "
            "nothing is cut unasked: shorten it, ask for truncation, or raise --max_length"
        )
    return np.ascontiguousarray(sequence, np.int32)
