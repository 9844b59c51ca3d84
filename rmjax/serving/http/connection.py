"""HTTP connections with limits on the size of headers and on their time; what a vanished client asked is cancelled."""

import asyncio
import functools
import json

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEADERS = 32 << 10  # bytes of a request's path and headers
HEADER_SECONDS = 20.0  # from a connection's opening, or a request's first byte, to the end of its headers


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself bounds neither headers nor the time that they take."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Gives the client a time for its first request."""
        super().connection_made(transport)
        self._header_bytes = 0
        self._running: set[asyncio.Task] = set()
        self._slow: asyncio.TimerHandle | None = self.loop.call_later(HEADER_SECONDS, self._too_slow)
        self.app = functools.partial(self._run, self.app)

    async def _run(self, app, scope, receive, send) -> None:
        task = asyncio.current_task()
        self._running.add(task)
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            if not self.transport.is_closing():
                raise
        finally:
            self._running.discard(task)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels what is still being answered: nobody waits for it."""
        super().connection_lost(exc)
        self._in_time()
        for task in self._running:
            task.cancel()

    def on_message_begin(self) -> None:
        """Begins a request."""
        super().on_message_begin()
        self._header_bytes = 0
        if self._slow is None:
            self._slow = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def on_headers_complete(self) -> None:
        """Ends the headers; the application limits the body."""
        self._in_time()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, as long as the headers end somewhere."""
        if self._slow is not None:
            if self._header_bytes > MAX_HEADERS:
                self._refuse(431, f"the request's headers have more than {MAX_HEADERS} bytes")
                return
            self._header_bytes += len(data)
        super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, and ends the connection."""
        self._refuse(400, msg)

    def _in_time(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _too_slow(self) -> None:
        self._slow = None
        self._refuse(408, f"the request's headers took longer than {HEADER_SECONDS:g} seconds")

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        if not self.transport.is_closing():
            self.transport.write(STATUS_LINE[status] + head + body)
            self.transport.close()
