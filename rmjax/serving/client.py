"""Clients for RL loops: rewards of many texts, with retries through overload and restarts of the server."""

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
Conversations = Sequence[Conversation]
_LENGTH_HEADER = "inference-header-content-length"
_RETRIED = (502, 503, 504)  # statuses of a server or proxy after which the same request may succeed
_MAX_BACKOFF = 10.0  # seconds between two attempts


class ServerError(Exception):
    """The server refused a request, or did not answer in time."""


class AsyncClient:
    """The coroutine version of `Client`.

    Args:
      url: `http://HOST:PORT`, or `https://`.
      model: its name.
      token: the bearer token, if the server requires one.
      batch: conversations per request.
      concurrency: requests in flight.
      timeout: seconds until a request must be answered, over all attempts.
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
        limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        settings: dict[str, Any] = {"base_url": url, "timeout": timeout, "trust_env": False, "limits": limits} | options
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http, self._slots = httpx2.AsyncClient(headers=headers, **settings), asyncio.Semaphore(concurrency)

    async def rewards(
        self, conversations: Conversations, prompts: Conversations | None = None, *, truncate: bool = False
    ) -> np.ndarray:
        """Returns the rewards of n conversations, float32 [n], or [n, A] for a model with several attributes.

        Args:
          conversations: whole texts, tokenized as they are, or lists of chat messages. With `prompts`, the responses
            only: strings are concatenated and end with EOS as in training, messages are appended; a string response
            to messages becomes the assistant's message.
          prompts: one per conversation. Put samples of one prompt next to each other: it is computed once.
          truncate: cut overlong conversations at their end instead of refusing them, with a warning.

        Raises:
          ServerError: a request was refused, or was not answered in time.
        """
        if prompts is not None:
            conversations = [_join(*pair) for pair in zip(prompts, conversations, strict=True)]
        parameters = {"truncate": truncate, "add_eos": prompts is not None}
        batches = [conversations[start : start + self._batch] for start in range(0, len(conversations), self._batch)]
        tasks = [asyncio.ensure_future(self._infer(batch, parameters)) for batch in batches]
        try:
            found = await asyncio.gather(*tasks)
        finally:  # after a failure, the other requests are of no use
            for task in tasks:
                task.cancel()
        rewards = np.concatenate(found) if found else np.zeros((0, 1), np.float32)
        return rewards[:, 0] if rewards.shape[1] == 1 else rewards

    async def _infer(self, conversations: Conversations, parameters: dict[str, bool]) -> np.ndarray:
        texts = all(isinstance(conversation, str) for conversation in conversations)
        data = list(conversations) if texts else [json.dumps(conversation) for conversation in conversations]
        name = "sentences" if texts else "messages"
        tensor = {"name": name, "datatype": "BYTES", "shape": [len(data), 1], "data": data}
        outputs = [{"name": "rewards", "parameters": {"binary_data": True}}, {"name": "exceeded"}]
        async with self._slots:
            body = json.dumps({"inputs": [tensor], "outputs": outputs, "parameters": parameters}).encode()
            response = await self._post(body)
        length = int(response.headers[_LENGTH_HEADER])
        rewards, exceeded = json.loads(response.content[:length])["outputs"]
        if any(exceeded["data"]):
            count = f"{sum(exceeded['data'])} of {len(data)} conversations"
            warnings.warn(f"{count} were longer than the model's maximum, and were cut", stacklevel=2)
        return np.frombuffer(response.content[length:], "<f4").reshape(rewards["shape"])

    async def _post(self, body: bytes) -> httpx2.Response:
        """Returns the response with status 200; retries after any failure, since a request changes no state."""
        deadline, backoff = time.monotonic() + self._timeout, 0.05
        while True:
            retry_after = 0.0
            try:
                left = max(deadline - time.monotonic(), 0.001)
                response = await self._http.post(self._path, content=body, timeout=left)
                if response.status_code == 200:
                    return response
                failure = f"{response.status_code}: {_message(response)}"
                if response.status_code not in _RETRIED:
                    raise ServerError(failure)
                retry_after = _seconds(response.headers.get("retry-after", ""))
            except httpx2.TransportError as error:  # refused, reset, or timed out
                failure = f"{type(error).__name__}: {error}"
            # Random jitter, so that clients refused together do not retry together.
            pause = max(min(backoff, _MAX_BACKOFF), retry_after) * random.uniform(0.5, 1.5)
            if time.monotonic() + pause >= deadline:
                raise ServerError(f"no response within {self._timeout:g} seconds; the last attempt ended in {failure}")
            await asyncio.sleep(pause)
            backoff *= 2

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Client:
    """Rewards for an RL loop, as `Client("http://127.0.0.1:8000").rewards(["one text", "another"])`; thread-safe.

    The arguments are those of `AsyncClient`. Samples of one prompt are scored by `rewards(samples, prompts=[prompt] *
    len(samples))`; `reward_function` can be passed to TRL's GRPOTrainer in `reward_funcs`.
    """

    def __init__(self, url: str, model: str = "reward_model", **options: Any):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rmjax client", daemon=True)
        self._thread.start()
        self._client = AsyncClient(url, model, **options)

    def rewards(
        self, conversations: Conversations, prompts: Conversations | None = None, *, truncate: bool = False
    ) -> np.ndarray:
        """Returns the rewards of n conversations; see `AsyncClient.rewards`."""
        return self._run(self._client.rewards(conversations, prompts, truncate=truncate))

    def reward_function(self, prompts: Sequence, completions: Sequence, **_: object) -> list[float]:
        """Returns the rewards of completions, strings or lists of messages, in the signature of TRL's trainers."""
        return self.rewards(completions, prompts).tolist()

    def close(self) -> None:
        """Closes the connections."""
        self._run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:  # includes Ctrl-C
            future.cancel()
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _join(prompt: Conversation, response: Conversation) -> Conversation:
    if isinstance(prompt, str):
        if not isinstance(response, str):
            raise TypeError(f"a prompt is a string and its response a {type(response).__name__}; expected a string")
        return prompt + response
    return [*prompt, *([{"role": "assistant", "content": response}] if isinstance(response, str) else response)]


def _seconds(header: str) -> float:
    try:
        return max(float(header), 0.0)
    except ValueError:  # empty, or a date from a proxy
        return 0.0


def _message(response: httpx2.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):  # the error page of a proxy
        return response.text[:200]
