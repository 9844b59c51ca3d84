"""Clients for RL loops: rewards of many texts, with retries through overload and restarts of the server."""

import asyncio
import json
import threading
import warnings
from collections.abc import Coroutine
from typing import Any

import numpy as np

from rmjax.serving.client.http import HttpTransport
from rmjax.serving.client.retries import Retries
from rmjax.serving.client.transport import Answer, Transport
from rmjax.serving.conversations import Conversation, Conversations, join

_SCHEMES = ("http", "https", "grpc", "grpcs")


class AsyncClient:
    """The coroutine version of `Client`, with the same arguments and methods."""

    def __init__(
        self,
        url: str,
        model: str = "reward_model",
        *,
        token: str = "",
        batch: int = 64,
        concurrency: int = 16,
        timeout: float = 600.0,
        wait: float = 0.0,
        **options: Any,
    ):
        self.url, self.model = url, model
        self._transport = _transport(url, model, token, concurrency, options)
        self._retries, self._batch, self._slots = Retries(url, timeout, wait), batch, asyncio.Semaphore(concurrency)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, {self.model!r})"

    async def rewards(
        self,
        conversations: Conversations,
        prompts: Conversations | Conversation | None = None,
        *,
        truncate: bool = False,
    ) -> np.ndarray:
        """Returns the rewards of n conversations; see `Client.rewards`."""
        return (await self._score(conversations, prompts, truncate, std=False))[0]

    async def rewards_and_std(
        self,
        conversations: Conversations,
        prompts: Conversations | Conversation | None = None,
        *,
        truncate: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rewards of n conversations and their standard deviations; see `Client.rewards_and_std`."""
        rewards, std = await self._score(conversations, prompts, truncate, std=True)
        return rewards, std

    async def _score(
        self, conversations: Conversations, prompts: Conversations | Conversation | None, truncate: bool, *, std: bool
    ) -> list[np.ndarray]:
        """Returns the rewards, and with `std` the standard deviations, [n] or [n, A] each."""
        samples = join(conversations, prompts)
        parameters = {"truncate": truncate, "add_eos": prompts is not None}
        starts = range(0, len(samples), self._batch)
        tasks = [asyncio.ensure_future(self._infer(samples, start, parameters, std)) for start in starts]
        try:
            found = await asyncio.gather(*tasks)
        finally:  # after a failure, the other requests are of no use
            for task in tasks:
                task.cancel()
        if not found:
            return [np.zeros(0, np.float32)] * (1 + std)
        values = [np.concatenate([answer[i] for answer in found]) for i in range(1 + std)]
        return [each[:, 0] if each.shape[1] == 1 else each for each in values]

    async def reward_function(self, prompts: Conversations, completions: Conversations, **_: object) -> list[float]:
        """Returns the rewards of completions, strings or lists of messages, in the signature of TRL's trainers."""
        rewards = await self.rewards(completions, prompts)
        if rewards.ndim > 1:
            raise ValueError(f"model {self.model!r} gives {rewards.shape[1]} rewards per completion; expected one")
        return rewards.tolist()

    async def model_card(self) -> dict[str, Any]:
        """Returns the model's metadata, such as `attributes`, `max_length` (tokens) and validation metrics."""
        return await self._retries.run(self._transport.model_card)

    async def models(self) -> list[str]:
        """Returns the names of the server's models."""
        return await self._retries.run(self._transport.models)

    async def close(self) -> None:
        """Closes the connections."""
        await self._transport.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _infer(
        self, samples: list[Conversation], start: int, parameters: dict[str, bool], std: bool
    ) -> list[np.ndarray]:
        batch = samples[start : start + self._batch]
        data = [entry if isinstance(entry, str) else json.dumps(entry) for entry in batch]
        name = "sentences" if isinstance(batch[0], str) else "messages"
        rows = "" if len(samples) == len(batch) else f" for conversations {start} to {start + len(batch) - 1}"
        async with self._slots:
            answer: Answer = await self._retries.run(
                lambda left: self._transport.infer(name, data, parameters, std, left, rows)
            )
        if answer.left_out:
            warnings.warn(f"the model's chat template leaves out content: {answer.left_out}", stacklevel=2)
        if answer.exceeded.any():
            count = f"{answer.exceeded.sum()} of {len(data)} conversations"
            warnings.warn(f"{count} were longer than the model's maximum, and were cut", stacklevel=2)
        return [answer.rewards] if answer.reward_std is None else [answer.rewards, answer.reward_std]


def _transport(url: str, model: str, token: str, concurrency: int, options: dict[str, Any]) -> Transport:
    scheme, _, address = url.partition("://")
    if scheme.lower() not in _SCHEMES or not address:
        raise ValueError(
            f"url is {url!r}; expected http://HOST:PORT or grpc://HOST:PORT, with https:// and grpcs:// for a server "
            "with TLS"
        )
    if scheme.lower().startswith("http"):
        return HttpTransport(url, model, token, concurrency, options)
    from rmjax.serving.client.grpc import GrpcTransport  # here, since clients over HTTP do not need it

    if unknown := sorted(options.keys() - {"verify", "cert"}):
        raise ValueError(f"unknown options {unknown} of a client over gRPC; expected verify and cert")
    return GrpcTransport(address.rstrip("/"), model, token, scheme.lower() == "grpcs", **options)


class Client:
    """Rewards for an RL loop, as `Client("http://127.0.0.1:8000").rewards(["one text", "another"])`; thread-safe.

    Samples of one prompt are scored by `rewards(samples, prompts=prompt)`; `reward_function` can be passed to TRL's
    GRPOTrainer in `reward_funcs`. Nothing is sent before the first call. A server that cannot be reached is an error
    at once, unless `wait` is given; once it has answered, requests are retried until `timeout`, so that they survive
    its restart.

    Args:
      url: `http://HOST:PORT`, or `grpc://HOST:PORT` with the server's gRPC port; `https://` and `grpcs://` with TLS.
      model: its name.
      token: the bearer token, if the server requires one.
      batch: conversations per request.
      concurrency: requests in flight.
      timeout: seconds until a request must be answered, over all attempts.
      wait: seconds to wait for a server that is starting and cannot be reached yet.
      options: for TLS, `verify`, the PEM file of the CA, and `cert`, those of the client's certificate and key; others
        of `httpx2.AsyncClient`.
    """

    def __init__(self, url: str, model: str = "reward_model", **options: Any):
        self._client = AsyncClient(url, model, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rmjax client", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return repr(self._client).removeprefix("Async")

    def rewards(
        self,
        conversations: Conversations,
        prompts: Conversations | Conversation | None = None,
        *,
        truncate: bool = False,
    ) -> np.ndarray:
        """Returns the rewards of n conversations, float32 [n], or [n, A] for a model with several attributes.

        Args:
          conversations: a list of whole texts, tokenized as they are, or of lists of chat messages. With `prompts`, the
            responses only: strings are concatenated and end with EOS as in training, messages are appended; a string
            response to messages becomes the assistant's message.
          prompts: a list of one prompt per conversation, or a single prompt, a string or a list of messages, for all of
            them. Put samples of one prompt next to each other: it is computed once.
          truncate: cut overlong conversations at their end instead of refusing them, with a warning.

        Raises:
          TypeError, ValueError: the arguments are not such lists, or differ in length.
          ServerError: the server cannot be reached, or a request was refused or not answered in time.
        """
        return self._run(self._client.rewards(conversations, prompts, truncate=truncate))

    def rewards_and_std(
        self,
        conversations: Conversations,
        prompts: Conversations | Conversation | None = None,
        *,
        truncate: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rewards of n conversations and their standard deviations, of the same shape; see `rewards`.

        Raises:
          ServerError: as `rewards`, or the model has no standard deviations (one head, no Laplace approximation).
        """
        return self._run(self._client.rewards_and_std(conversations, prompts, truncate=truncate))

    def reward_function(self, prompts: Conversations, completions: Conversations, **_: object) -> list[float]:
        """Returns the rewards of completions, strings or lists of messages, in the signature of TRL's trainers."""
        return self._run(self._client.reward_function(prompts, completions))

    def model_card(self) -> dict[str, Any]:
        """Returns the model's metadata, such as `attributes`, `max_length` (tokens) and validation metrics."""
        return self._run(self._client.model_card())

    def models(self) -> list[str]:
        """Returns the names of the server's models."""
        return self._run(self._client.models())

    def close(self) -> None:
        """Closes the connections; calls that other threads wait for raise CancelledError."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        for task in (tasks := asyncio.all_tasks() - {asyncio.current_task()}):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

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
