"""HTTP connections that bound the size and time of headers, and cancel the requests of disconnected clients.

Relies on these internals of uvicorn 0.53 and 0.54, which tests/serving/http/test_connection.py checks: the attributes
`loop`, `transport` and `app` of `HttpToolsProtocol`; that the end of a request's headers starts a new task with `app`;
that the transport and the HTTP parser call the methods overridden here; and `STATUS_LINE`, first lines of responses.
"""

import asyncio
import functools
import json
import socket
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from rmjax.core.errors import InputError

MAX_HEADERS = 32 << 10  # bytes of a request's path and headers
HEADER_SECONDS = 20.0  # from the start of a connection, or a request's first byte, to the end of its headers
BACKLOG = 4096  # connections that may wait to be accepted


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on an address; port 0 takes a free one.

    Raises:
      InputError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol given, asyncio sets TCP_NODELAY; without it, responses took 44 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)  # raises here if the port is taken
    except OSError as error:
        listening.close()
        raise InputError(f"cannot listen on {host}:{port} ({error}); port 0 takes any free one") from error
    return listening


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits for headers, which it lacks."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Starts the time limit of the first request."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._header_bytes = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._in_headers = True  # from the start of a connection, or a request's first byte, to the end of its headers
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(HEADER_SECONDS, self._time_out)
        self.app = functools.partial(self._run, self.app)

    async def _run(self, app: Any, scope: Any, receive: Any, send: Any) -> None:
        task = cast(asyncio.Task[Any], asyncio.current_task())
        self._tasks.add(task)
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            if not self.transport.is_closing():
                raise
        finally:
            self._tasks.discard(task)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the requests in flight."""
        super().connection_lost(exc)
        self._stop_timer()
        for task in self._tasks:
            task.cancel()

    def on_message_begin(self) -> None:
        """Starts a request."""
        super().on_message_begin()
        self._header_bytes, self._in_headers = 0, True

    def on_headers_complete(self) -> None:
        """Ends the time limit; the application limits the body."""
        self._in_headers = False
        self._stop_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Passes bytes to the parser while the headers are within their limits of size and time."""
        if self._in_headers:
            if self._header_bytes > MAX_HEADERS:
                self._refuse(431, f"the request's headers have more than {MAX_HEADERS} bytes")
                return
            self._header_bytes += len(data)
        super().data_received(data)
        if self._in_headers and self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(HEADER_SECONDS, self._time_out)  # headers that arrive at once need none

    def send_400_response(self, msg: str) -> None:
        """Answers bytes that are not HTTP, and closes the connection."""
        self._refuse(400, msg)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        self._refuse(408, f"the request's headers took longer than {HEADER_SECONDS:g} seconds")

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        if not self.transport.is_closing():
            self.transport.write(STATUS_LINE[status] + head + body)
            self.transport.close()
