"""Clients for RL loops: rewards of many texts, with retries through overload and restarts of the server."""

import asyncio
import json
import random
import reprlib
import socket
import ssl
import threading
import time
import urllib.parse
import warnings
from collections.abc import Coroutine
from typing import Any

import httpx2
import numpy as np

from rmjax.serving.conversations import Conversation, Conversations, join

_LENGTH_HEADER = "inference-header-content-length"
_RETRIED = (502, 503, 504)  # statuses of a server or proxy after which the same request may succeed
_MAX_BACKOFF, _MAX_POLL = 10.0, 1.0  # seconds between two attempts, in general and for a server that is starting
_CONNECT_SECONDS, _WARN_SECONDS = 10.0, 5.0  # of an attempt to connect; of retries, before the warning
_TIMEOUTS = (httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout)  # of servers that can be reached
_START = "python -m rmjax.serve --model=PATH --http_port=PORT"


class ServerError(Exception):
    """The server cannot be reached, refused a request, or did not answer in time."""


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
        if not url.lower().startswith(("http://", "https://")):
            raise ValueError(f"url is {url!r}; expected http://HOST:PORT, or https://HOST:PORT for a server with TLS")
        self.url, self.model = url, model
        self._path = f"/v2/models/{urllib.parse.quote(model, safe='')}"
        self._batch, self._timeout, self._wait = batch, timeout, wait
        self._answered = self._warned = False
        limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        settings: dict[str, Any] = {"base_url": url, "timeout": timeout, "trust_env": False, "limits": limits} | options
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._token_fix = "the token of this client is not the server's" if token else "pass token=... to the client"
        self._http, self._slots = httpx2.AsyncClient(headers=headers, **settings), asyncio.Semaphore(concurrency)

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
        samples = join(conversations, prompts)
        parameters = {"truncate": truncate, "add_eos": prompts is not None}
        starts = range(0, len(samples), self._batch)
        tasks = [asyncio.ensure_future(self._infer(samples, start, parameters)) for start in starts]
        try:
            found = await asyncio.gather(*tasks)
        finally:  # after a failure, the other requests are of no use
            for task in tasks:
                task.cancel()
        rewards = np.concatenate(found) if found else np.zeros((0, 1), np.float32)
        return rewards[:, 0] if rewards.shape[1] == 1 else rewards

    async def reward_function(self, prompts: Conversations, completions: Conversations, **_: object) -> list[float]:
        """Returns the rewards of completions, strings or lists of messages, in the signature of TRL's trainers."""
        rewards = await self.rewards(completions, prompts)
        if rewards.ndim > 1:
            raise ValueError(f"model {self.model!r} gives {rewards.shape[1]} rewards per completion; expected one")
        return rewards.tolist()

    async def model_card(self) -> dict[str, Any]:
        """Returns the model's metadata, such as `attributes`, `max_length` (tokens) and validation metrics."""
        return (await self._json("GET", self._path))["parameters"]

    async def models(self) -> list[str]:
        """Returns the names of the server's models."""
        return [entry["name"] for entry in await self._json("POST", "/v2/repository/index")]

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _infer(self, samples: list[Conversation], start: int, parameters: dict[str, bool]) -> np.ndarray:
        batch = samples[start : start + self._batch]
        texts = isinstance(batch[0], str)
        data = batch if texts else [json.dumps(messages) for messages in batch]
        name = "sentences" if texts else "messages"
        tensor = {"name": name, "datatype": "BYTES", "shape": [len(data), 1], "data": data}
        outputs = [{"name": "rewards", "parameters": {"binary_data": True}}, {"name": "exceeded"}]
        rows = "" if len(samples) == len(batch) else f" for conversations {start} to {start + len(batch) - 1}"
        async with self._slots:
            body = json.dumps({"inputs": [tensor], "outputs": outputs, "parameters": parameters}).encode()
            response = await self._request("POST", self._path + "/infer", body, rows)
        if _LENGTH_HEADER not in response.headers:
            raise ServerError(self._foreign(response))
        length = int(response.headers[_LENGTH_HEADER])
        header = json.loads(response.content[:length])
        rewards, exceeded = header["outputs"]
        if left_out := header.get("parameters", {}).get("left_out"):
            warnings.warn(f"the model's chat template leaves out content: {left_out}", stacklevel=2)
        if any(exceeded["data"]):
            count = f"{sum(exceeded['data'])} of {len(data)} conversations"
            warnings.warn(f"{count} were longer than the model's maximum, and were cut", stacklevel=2)
        return np.frombuffer(response.content[length:], "<f4").reshape(rewards["shape"])

    async def _json(self, method: str, path: str) -> Any:
        response = await self._request(method, path)
        try:
            return response.json()
        except ValueError:
            raise ServerError(self._foreign(response)) from None

    async def _request(self, method: str, path: str, body: bytes = b"", rows: str = "") -> httpx2.Response:
        """Returns the response with status 200; retries where the same request may succeed, as it changes no state.

        Args:
          rows: the conversations of the request, for error messages.
        """
        first = started = time.monotonic()
        backoff = 0.05
        while True:
            limit, deadline, max_backoff, retry_after = self._timeout, started + self._timeout, _MAX_BACKOFF, 0.0
            left = max(deadline - time.monotonic(), 0.001)
            timeout = httpx2.Timeout(left, connect=min(left, _CONNECT_SECONDS))
            try:
                response = await self._http.request(method, path, content=body, timeout=timeout)
            except httpx2.TransportError as error:
                failure, fix = _failure(error)
                if not self._answered and not isinstance(error, _TIMEOUTS):
                    # There may be no server. The timeout starts when there is one.
                    limit, deadline, max_backoff, started = self._wait, first + self._wait, _MAX_POLL, time.monotonic()
            else:
                if response.status_code == 200:
                    self._answered = True
                    return response
                message = _message(response)
                self._answered = self._answered or message is not None
                if response.status_code not in _RETRIED:
                    raise ServerError(self._refused(response, message, rows))
                failure, fix = f"it answered {response.status_code}{rows}: {message or response.text[:200]}", ""
                retry_after = _seconds(response.headers.get("retry-after", ""))
            # Random jitter, so that clients refused together do not retry together.
            pause = max(min(backoff, max_backoff), retry_after) * random.uniform(0.5, 1.5)
            now = time.monotonic()
            if now + pause >= deadline:
                waited = f"no success within {limit:g} seconds; in the last attempt " if limit else ""
                raise ServerError(f"{self.url}: {waited}{failure}{fix}")
            if now - first > _WARN_SECONDS and not self._warned:
                self._warned = True
                warnings.warn(
                    f"{self.url}: retrying for {now - first:.0f} of at most {limit:g} seconds; in the last attempt "
                    f"{failure}",
                    stacklevel=2,
                )
            await asyncio.sleep(pause)
            backoff *= 2

    def _refused(self, response: httpx2.Response, message: str | None, rows: str) -> str:
        if message is None:
            return self._foreign(response)
        fixes = {401: f" ({self._token_fix})", 404: " (models are named by the client's argument `model`)"}
        return f"{self.url} answered {response.status_code}{rows}: {message}{fixes.get(response.status_code, '')}"

    def _foreign(self, response: httpx2.Response) -> str:
        found = f"{response.status_code} with {response.headers.get('content-type', 'no content type')}"
        return (
            f"{self.url} answered {found}, {reprlib.repr(response.text)}: not a response of rmjax.serve; is another "
            f"server on this port? Check the URL, or start one with {_START}"
        )


class Client:
    """Rewards for an RL loop, as `Client("http://127.0.0.1:8000").rewards(["one text", "another"])`; thread-safe.

    Samples of one prompt are scored by `rewards(samples, prompts=prompt)`; `reward_function` can be passed to TRL's
    GRPOTrainer in `reward_funcs`. Nothing is sent before the first call. A server that cannot be reached is an error
    at once, unless `wait` is given; once it has answered, requests are retried until `timeout`, so that they survive
    its restart.

    Args:
      url: `http://HOST:PORT`, or `https://`; the server's HTTP port, not its gRPC port.
      model: its name.
      token: the bearer token, if the server requires one.
      batch: conversations per request.
      concurrency: requests in flight.
      timeout: seconds until a request must be answered, over all attempts.
      wait: seconds to wait for a server that is starting and cannot be reached yet.
      options: of `httpx2.AsyncClient`, such as `verify` and `cert` for TLS.
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


def _failure(error: Exception) -> tuple[str, str]:
    """Returns what happened to a connection, and what to do, as texts to be joined."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause)
    reason = f"({type(causes[-1]).__name__}: {causes[-1]})"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        fix = "use http:// for a server without TLS, else pass verify= and cert= with its certificates"
        return f"the TLS connection failed {reason}", f"; {fix}"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"the host is unknown {reason}", "; check the URL"
    if isinstance(error, _TIMEOUTS):
        return f"the server did not answer {reason}", "; pass a larger timeout="
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        fix = f"Start it with {_START}, or pass wait=SECONDS for one that is starting"
        return f"the connection failed {reason}", f"; is the server running? {fix}"
    fix = "; use the server's HTTP port, not its gRPC port, and https:// for a server with TLS"
    return f"the server ended the connection without an HTTP response {reason}", fix


def _seconds(header: str) -> float:
    try:
        return max(float(header), 0.0)
    except ValueError:  # empty, or a date from a proxy
        return 0.0


def _message(response: httpx2.Response) -> str | None:
    """Returns the error message in a response; None if it is not one of rmjax.serve."""
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):  # the page of a proxy or another server
        return None
