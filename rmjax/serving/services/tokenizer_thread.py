"""A worker thread that tokenizes the texts of concurrent requests in batches."""

import asyncio
import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rmjax.data.schema import Message
from rmjax.data.tokens.tokenizer import Encoded, Tokenizer
from rmjax.serving.engine.batch_window import BatchWindow
from rmjax.serving.engine.worker import Worker

Text = str | list[Message]
_MAX_BATCH = 256  # texts in one call of the tokenizer; bounds how long a request waits for the texts of others


class _Request(NamedTuple):
    texts: Sequence[Text]
    add_eos: bool
    future: asyncio.Future[list[Encoded]]


class TokenizerThread:
    """Encodes the texts of concurrent requests in one thread; `tokenizer` must not be used in others.

    One thread, because Hugging Face's fast tokenizers raise "Already borrowed" if two threads use one; in batches,
    because a thread switch takes longer than tokenizing a short text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.queued = 0  # texts
        self._tokenizer = tokenizer
        self._requests: collections.deque[_Request] = collections.deque()
        self._window = BatchWindow()
        self._task: asyncio.Task | None = None
        self._worker = Worker("tokenize")

    async def encode(self, texts: Sequence[Text], add_eos: bool) -> list[Encoded]:
        """Returns what `Tokenizer.encode_checked` returns for these texts; raises what it raises."""
        request = _Request(texts, add_eos, asyncio.get_running_loop().create_future())
        self._requests.append(request)
        self.queued += len(texts)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            return await request.future
        finally:
            self.queued -= len(texts)

    async def token_strings(self, tokens: np.ndarray) -> list[str]:
        """Returns the text of each token."""
        return await self._worker.run(self._tokenizer.token_strings, tokens)

    async def _run(self) -> None:
        while self._requests:
            await self._window.wait(lambda: len(self._requests))
            batch: list[_Request] = []
            size = 0
            while self._requests and (not batch or size + len(self._requests[0].texts) <= _MAX_BATCH):
                batch.append(self._requests.popleft())
                size += len(batch[-1].texts)
            batch = [request for request in batch if not request.future.done()]  # skips the cancelled ones
            results = await self._worker.run(self._encode_batch, batch)
            for request, result in zip(batch, results, strict=True):
                if request.future.done():
                    continue
                if isinstance(result, Exception):
                    request.future.set_exception(result)
                else:
                    request.future.set_result(result)
        self._task = None

    def _encode_batch(self, batch: list[_Request]) -> list[list[Encoded] | Exception]:
        """Returns each request's encoded texts, or the exception that these texts alone raise."""
        results: list[list[Encoded] | Exception] = [[]] * len(batch)
        for add_eos in (False, True):
            chosen = [i for i, request in enumerate(batch) if request.add_eos == add_eos]
            texts = [text for i in chosen for text in batch[i].texts]
            try:
                encoded = iter(self._tokenizer.encode_checked(texts, add_eos) if texts else ())
                for i in chosen:
                    results[i] = [next(encoded) for _ in batch[i].texts]
            except BaseException as error:  # a Rust panic in the tokenizer is not an Exception
                if len(batch) == 1:
                    return [error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")]
                for i in chosen:
                    results[i] = self._encode_batch([batch[i]])[0]
        return results

    def close(self) -> None:
        """Stops the thread."""
        self._worker.close()
