"""A client for RL loops: rewards of many texts, through overload and restarts of the server."""

import asyncio
import json
import random
import threading
import time
import warnings
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import httpx2
import numpy as np

Conversation = str | Sequence[Mapping[str, Any]]
_BINARY = "inference-header-content-length"
_AGAIN = (502, 503, 504)  # what a server, or a proxy before it, says when the same request may succeed later
_LONGEST_WAIT = 10.0  # seconds between two tries


class ServerError(Exception):
    """The server refused a request, or did not answer in time."""


class AsyncClient:
    """As `Client`, with coroutines.

    Args:
      url: `http://HOST:PORT`, or `https://`.
      model: its name.
      token: the bearer token, where the server asks for one.
      batch: conversations of one request.
      concurrency: requests at a time.
      timeout: seconds in which a request must be answered, all tries together.
      options: of `httpx2.AsyncClient`, such as `verify` and `cert` for TLS.
    """

    def __init__(
        self,
        url: str,
        model: str = "reward_model",
        *,
        token: str = "",
        batch: int = 64,
        concurrency: int = 16,
        timeout: float = 600.0,
        **options: Any,
    ):
        self._path, self._batch, self._timeout = f"/v2/models/{model}/infer", batch, timeout
        headers = {"authorization": f"Bearer {token}"} if token else {}
        limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        options = {"trust_env": False, "limits": limits} | options
        self._http = httpx2.AsyncClient(base_url=url, headers=headers, timeout=timeout, **options)
        self._turn = asyncio.Semaphore(concurrency)

    async def rewards(
        self,
        conversations: Sequence[Conversation],
        prompts: Sequence[Conversation] | None = None,
        *,
        truncate: bool = False,
    ) -> np.ndarray:
        """Returns the rewards of n conversations, float32 [n], or [n, A] of a model with several attributes.

        Args:
          conversations: whole texts, tokenised as they are, or lists of chat messages. With `prompts`, only what comes
            after them: texts are joined as they are and closed as in training, messages are appended; where a prompt
            is messages and its answer a text, it becomes the assistant's message.
          prompts: one for each conversation. Samples of one prompt should follow each other: it is computed once.
          truncate: cut overlong conversations at their end instead of refusing them; a warning says how many.

        Raises:
          ServerError: a request was refused, or was not answered in time.
        """
        if prompts is not None:
            conversations = [_joined(*pair) for pair in zip(prompts, conversations, strict=True)]
        parameters = {"truncate": truncate, "add_eos": prompts is not None}
        starts = range(0, len(conversations), self._batch)
        parts = [self._ask(conversations[start : start + self._batch], parameters) for start in starts]
        tasks = [asyncio.ensure_future(part) for part in parts]
        try:
            found = await asyncio.gather(*tasks)
        finally:  # one was refused: nobody waits for the others
            for task in tasks:
                task.cancel()
        rewards = np.concatenate(found) if found else np.zeros((0, 1), np.float32)
        return rewards[:, 0] if rewards.shape[1] == 1 else rewards

    async def _ask(self, conversations: Sequence[Conversation], parameters: dict[str, bool]) -> np.ndarray:
        texts = all(isinstance(conversation, str) for conversation in conversations)
        data = conversations if texts else [json.dumps(conversation) for conversation in conversations]
        given = {"name": "sentences" if texts else "messages", "datatype": "BYTES", "shape": [len(data), 1]}
        wanted = [{"name": "rewards", "parameters": {"binary_data": True}}, {"name": "exceeded"}]
        body = {"inputs": [given | {"data": list(data)}], "outputs": wanted, "parameters": parameters}
        async with self._turn:
            answer = await self._post(json.dumps(body).encode())
        length = int(answer.headers[_BINARY])
        output, exceeded = json.loads(answer.content[:length])["outputs"]
        if any(exceeded["data"]):
            cut = f"{sum(exceeded['data'])} of {len(data)} conversations"
            warnings.warn(f"{cut} were longer than the server takes, and were cut", stacklevel=2)
        return np.frombuffer(answer.content[length:], "<f4").reshape(output["shape"])

    async def _post(self, body: bytes) -> httpx2.Response:
        """Sends a request until it is answered; it changes nothing, so it may be sent again after any failure."""
        ends, wait = time.monotonic() + self._timeout, 0.05
        while True:
            retry_after = 0.0
            try:
                left = max(ends - time.monotonic(), 0.001)
                answer = await self._http.post(self._path, content=body, timeout=left)
                if answer.status_code == 200:
                    return answer
                failure = f"{answer.status_code}: {_message(answer)}"
                if answer.status_code not in _AGAIN:
                    raise ServerError(failure)
                retry_after = _seconds(answer.headers.get("retry-after", ""))
            except httpx2.TransportError as error:  # refused, reset, or timed out
                failure = f"{type(error).__name__}: {error}"
            # At random up to twice the wait, so that clients refused together do not come back together.
            pause = max(min(wait, _LONGEST_WAIT), retry_after) * random.uniform(0.5, 1.5)
            if time.monotonic() + pause >= ends:
                raise ServerError(f"no answer within {self._timeout:g} seconds; the last try ended in {failure}")
            await asyncio.sleep(pause)
            wait *= 2

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Client:
    """Rewards for an RL loop; may be used by several threads. `AsyncClient` takes the same arguments.

        from rmjax.serving import Client

        client = Client("http://127.0.0.1:8000")
        rewards = client.rewards(["a whole text", "another"])  # float32 [2]

        chat = [{"role": "user", "content": "2 + 2?"}]
        samples = ["4", "5", "four"]  # of one prompt, which the server computes once
        rewards = client.rewards(samples, prompts=[chat] * len(samples))
        advantages = rewards - rewards.mean()
        best = samples[int(rewards.argmax())]

    `client.reward_function` is a `reward_funcs` callable of TRL's GRPOTrainer.
    """

    def __init__(self, url: str, model: str = "reward_model", **options: Any):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rmjax client", daemon=True)
        self._thread.start()
        self._client = AsyncClient(url, model, **options)

    def rewards(
        self,
        conversations: Sequence[Conversation],
        prompts: Sequence[Conversation] | None = None,
        *,
        truncate: bool = False,
    ) -> np.ndarray:
        """As `AsyncClient.rewards`."""
        return self._call(self._client.rewards(conversations, prompts, truncate=truncate))

    def reward_function(self, prompts: Sequence, completions: Sequence, **_: object) -> list[float]:
        """Returns the rewards of completions as TRL's trainers ask for them: strings, or lists of messages."""
        return self.rewards(completions, prompts).tolist()

    def close(self) -> None:
        """Closes the connections."""
        self._call(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C
            future.cancel()
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _joined(prompt: Conversation, answer: Conversation) -> Conversation:
    if isinstance(prompt, str):
        if not isinstance(answer, str):
            raise TypeError(f"a prompt is a string and what follows it a {type(answer).__name__}; expected a string")
        return prompt + answer
    return [*prompt, *([{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer)]


def _seconds(header: str) -> float:
    try:
        return max(float(header), 0.0)
    except ValueError:  # a proxy may give a date; the usual wait will do
        return 0.0


def _message(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):  # a proxy's own page
        return answer.text[:200]
