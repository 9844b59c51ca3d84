"""Refusal of HTTP requests that are addressed to an unknown host name."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rmjax.serving.errors import Forbidden
from rmjax.serving.http.routing import header
from rmjax.serving.security import check_host


class HostCheck:
    """An ASGI application that passes requests on to `app` if their header `host` names one of the `known` hosts.

    All paths are checked, since a page that rebinds its name could read any of them. Requests without the header are
    passed on: browsers always send it.
    """

    def __init__(self, app: ASGIApp, known: frozenset[str]):
        self._app, self._known = app, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        answer = self._app
        if host := header(scope, "host"):
            try:
                check_host(host, self._known)
            except Forbidden as error:
                answer = JSONResponse({"error": str(error)}, error.status)
        await answer(scope, receive, send)
