"""Endpoints of the web pages, which are self-contained."""

import importlib.resources
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from rmjax.core.web import style_sheet

_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'"
}


def page(name: str, description: str) -> Callable[[Request, bytes], Awaitable[Response]]:
    """Returns the endpoint of the file `name` in `pages`."""
    text = (importlib.resources.files("rmjax.serving.http") / "pages" / name).read_text(encoding="utf-8")
    text = text.replace("/* style.css */", style_sheet())

    async def answer(request: Request, _: bytes) -> Response:
        return HTMLResponse(text, headers=_PAGE_HEADERS)

    answer.__doc__ = description
    return answer
