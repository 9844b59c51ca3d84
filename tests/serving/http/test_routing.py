"""Dispatch by path and method."""

import asyncio

from starlette.responses import PlainTextResponse
from starlette.routing import Route

from rmjax.serving.http.routing import Routes


def answer(app, method, path):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(app(scope, None, send))
    return sent[-1]["body"]


def test_the_first_route_with_path_and_method_answers():
    def reply(text):
        async def endpoint(request):
            return PlainTextResponse(f"{text} {request.path_params}")

        return endpoint

    routes = [
        Route("/models/{model}", reply("get"), methods=["GET"]),
        Route("/models/{model}", reply("post"), methods=["POST"]),
        Route("/models/{other}", reply("never"), methods=["POST"]),
    ]
    app = Routes(routes, PlainTextResponse("otherwise"))
    assert answer(app, "GET", "/models/a") == b"get {'model': 'a'}"
    assert answer(app, "HEAD", "/models/a") == b"get {'model': 'a'}"
    assert answer(app, "POST", "/models/a") == b"post {'model': 'a'}"
    for method, path in (("PUT", "/models/a"), ("GET", "/models/a/b"), ("GET", "/models")):
        assert answer(app, method, path) == b"otherwise"
