"""The client's requests over HTTP."""

import json
import reprlib
import socket
import ssl
import urllib.parse
from typing import Any

import httpx2
import numpy as np

from rmjax.serving.client.retries import Failure, ServerError
from rmjax.serving.client.transport import CONNECT_SECONDS, START, Answer, refusal_fix

_LENGTH_HEADER = "inference-header-content-length"
_RETRIED = (502, 503, 504)  # statuses of a server or proxy after which the same request may succeed
_TIMEOUTS = (httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout)  # of servers that can be reached
_START = f"{START} --http_port=PORT"


class HttpTransport:
    """Connections to a server's HTTP port; see `Transport`.

    Args:
      options: of `httpx2.AsyncClient`, such as `verify` and `cert` for TLS.
    """

    def __init__(self, url: str, model: str, token: str, concurrency: int, options: dict[str, Any]):
        self._url, self._token = url, token
        self._path = f"/v2/models/{urllib.parse.quote(model, safe='')}"
        limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        settings: dict[str, Any] = {"base_url": url, "trust_env": False, "limits": limits} | options
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx2.AsyncClient(headers=headers, **settings)

    async def infer(
        self, name: str, data: list[str], parameters: dict[str, bool], std: bool, left: float, rows: str = ""
    ) -> Answer:
        """Returns the rewards of the strings in the input tensor `name`; see `Transport`."""
        tensor = {"name": name, "datatype": "BYTES", "shape": [len(data), 1], "data": data}
        binary = {"binary_data": True}
        outputs = [{"name": "rewards", "parameters": binary}, {"name": "exceeded"}]
        outputs += [{"name": "reward_std", "parameters": binary}] if std else []
        body = json.dumps({"inputs": [tensor], "outputs": outputs, "parameters": parameters}).encode()
        response = await self._request("POST", self._path + "/infer", left, body, rows)
        if _LENGTH_HEADER not in response.headers:
            raise ServerError(self._foreign(response))
        length = int(response.headers[_LENGTH_HEADER])
        header = json.loads(response.content[:length])
        shape, exceeded = header["outputs"][0]["shape"], np.array(header["outputs"][1]["data"], bool)
        values = np.frombuffer(response.content[length:], "<f4").reshape(1 + std, *shape)
        left_out = header.get("parameters", {}).get("left_out", "")
        return Answer(values[0], exceeded, left_out, values[1] if std else None)

    async def model_card(self, left: float) -> dict[str, Any]:
        """Returns the model's metadata."""
        return (await self._json("GET", self._path, left))["parameters"]

    async def models(self, left: float) -> list[str]:
        """Returns the names of the server's models."""
        return [entry["name"] for entry in await self._json("POST", "/v2/repository/index", left)]

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def _json(self, method: str, path: str, left: float) -> Any:
        response = await self._request(method, path, left)
        try:
            return response.json()
        except ValueError:
            raise ServerError(self._foreign(response)) from None

    async def _request(self, method: str, path: str, left: float, body: bytes = b"", rows: str = "") -> httpx2.Response:
        timeout = httpx2.Timeout(left, connect=min(left, CONNECT_SECONDS))
        try:
            response = await self._http.request(method, path, content=body, timeout=timeout)
        except httpx2.TransportError as error:
            text, fix = _failure(error)
            raise Failure(text, fix, reached=isinstance(error, _TIMEOUTS)) from error
        if response.status_code == 200:
            return response
        message = _message(response)
        if response.status_code in _RETRIED:
            raise Failure(
                f"it answered {response.status_code}{rows}: {message or response.text[:200]}",
                answered=message is not None,
                retry_after=_seconds(response.headers.get("retry-after", "")),
            )
        if message is None:
            raise ServerError(self._foreign(response))
        fix = refusal_fix(response.status_code, self._token)
        raise ServerError(f"{self._url} answered {response.status_code}{rows}: {message}{fix}")

    def _foreign(self, response: httpx2.Response) -> str:
        found = f"{response.status_code} with {response.headers.get('content-type', 'no content type')}"
        return (
            f"{self._url} answered {found}, {reprlib.repr(response.text)}: not a response of rmjax.serve; is another "
            f"server on this port? Check the URL, or start one with {_START}"
        )


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
