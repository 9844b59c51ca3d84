"""TokenizerThread in a thread of its own, the texts that wait together in one call."""

import asyncio
import collections
import concurrent.futures
from collections.abc import Sequence

import numpy as np

from rmjax.data.schema import Message
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.serving.engine.gathering import Gathering

Text = str | list[Message]
_TEXTS = 256  # of one call, so that nobody waits long behind others


class TokenizerThread:
    """Encodes texts of concurrent requests.

    One thread: Hugging Face's fast tokenizers fail with "Already borrowed" when two use them at once. Calls of several
    requests together: changing threads costs more than tokenising a short text.

    Args:
      tokenizer: used by nobody else.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.waiting = 0  # texts
        self._tokenizer = tokenizer
        self._requests: collections.deque[tuple[Sequence[Text], bool, asyncio.Future]] = collections.deque()
        self._gather = Gathering()
        self._task: asyncio.Task | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tokenise")

    async def __call__(self, texts: Sequence[Text], add_eos: bool) -> list[np.ndarray]:
        """Returns the tokens of each text.

        Raises:
          Exception: what `Tokenizer.encode` raises for these texts.
        """
        found = asyncio.get_running_loop().create_future()
        self._requests.append((texts, add_eos, found))
        self.waiting += len(texts)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            return await found
        finally:
            self.waiting -= len(texts)

    async def words(self, tokens: np.ndarray) -> list[str]:
        """Returns what each token alone stands for."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._tokenizer.words, tokens)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._requests:
            await self._gather(lambda: len(self._requests))
            batch, size = [], 0
            while self._requests and (not batch or size + len(self._requests[0][0]) <= _TEXTS):
                batch.append(self._requests.popleft())
                size += len(batch[-1][0])
            batch = [request for request in batch if not request[2].done()]  # the others were cancelled
            encoded = await loop.run_in_executor(self._thread, self._encode_all, [request[:2] for request in batch])
            for (*_, found), tokens in zip(batch, encoded, strict=True):
                if found.done():
                    continue
                if isinstance(tokens, Exception):
                    found.set_exception(tokens)
                else:
                    found.set_result(tokens)
        self._task = None

    def _encode_all(self, requests: list[tuple[Sequence[Text], bool]]) -> list[list[np.ndarray] | Exception]:
        found: list[list[np.ndarray] | Exception] = [[]] * len(requests)
        for add_eos_value in (False, True):
            chosen = [i for i, (_, add_eos) in enumerate(requests) if add_eos == add_eos_value]
            try:
                tokens = iter(
                    self._tokenizer.encode([text for i in chosen for text in requests[i][0]], add_eos_value)
                    if chosen
                    else ()
                )
                for i in chosen:
                    found[i] = [next(tokens) for _ in requests[i][0]]
            except BaseException as error:  # one of them is at fault: alone, each answers for itself
                if len(requests) == 1:  # a panic of the tokenizer's is no Exception
                    return [error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")]
                for i in chosen:
                    found[i] = self._encode_all([requests[i]])[0]
        return found

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown()
