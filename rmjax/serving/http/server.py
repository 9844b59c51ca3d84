"""The HTTP face: the Open Inference Protocol v2, the forms of RL frameworks, metrics, and pages for people."""

import asyncio
import contextlib
import dataclasses
import importlib.resources
import math
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from absl import logging
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

import rmjax
from rmjax.core.errors import InputError
from rmjax.serving.errors import Forbidden, NotFound, Overloaded, RequestError, ServingError, TooLarge, TooSlow
from rmjax.serving.http import compat
from rmjax.serving.http.connection import LimitedProtocol
from rmjax.serving.http.tensors import LENGTH_HEADER, field, parse_json, read_infer, write_infer
from rmjax.serving.protocol import Call, check_outputs, chosen_outputs, model_configuration, model_metadata, read_call
from rmjax.serving.registry import ModelRegistry
from rmjax.serving.security import Security

_MAX_BODY = 128 << 20  # bytes of one request; the critic's training batches reach 84 MB
_MAX_BODIES = 1 << 30  # bytes of all requests in progress
_BODY_SECONDS = 120.0  # from a request's headers to the end of its body
_KEEP_ALIVE = 600  # seconds that an idle connection stays open: RL loops pause between their rollouts
_BACKLOG = 4096  # connections that may wait to be accepted
_PAGE_HEADERS = {"content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
                                            " connect-src 'self'; frame-ancestors 'none'"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Endpoint:
    """One path and method.

    Attributes:
      answer: (request, body) to the response.
      open: whether it answers without the token: probes have none, and the pages hold nothing to protect.
    """

    method: str
    path: str
    answer: Callable[[Request, bytes], Awaitable[Response]]
    about: str
    open: bool = False


class HttpApplication:
    """Answers HTTP requests; `app` is the ASGI application."""

    def __init__(self, registry: ModelRegistry, security: Security):
        self._registry, self._security = registry, security
        self._held = 0  # bytes of all bodies in progress
        model = "/v2/models/{model}"
        self._endpoints = [
            *(
                _Endpoint("POST", path + "/infer", self._infer, "Answers inputs with outputs.")
                for path in (model, model + "/versions/{version}")
            ),
            *(
                _Endpoint("POST", path, self._contract(function), function.__doc__ or "")
                for path, function in (
                    ("/get_reward", compat.get_reward),
                    ("/classify", compat.classify),
                    ("/pooling", compat.pooling),
                    ("/v1/embeddings", compat.embeddings),
                    ("/predict", compat.predict),
                    ("/score", compat.score),
                    ("/tokenize", compat.tokenize),
                )
            ),
            _Endpoint("GET", "/v2/health/live", self._live, "200 while the process answers.", open=True),
            _Endpoint("GET", "/v2/health/ready", self._ready, "200 while every model is warm.", open=True),
            _Endpoint("GET", "/v2", self._server, "Names the server and the protocol's extensions it has."),
            *(
                endpoint
                for path in (model, model + "/versions/{version}")
                for endpoint in (
                    _Endpoint(
                        "GET", path, self._describe(model_metadata), "The model's tensors, and metadata about it."
                    ),
                    _Endpoint(
                        "GET", path + "/config", self._describe(model_configuration), "The model for Triton's clients."
                    ),
                    _Endpoint("GET", path + "/ready", self._model_ready, "200 while the model is warm."),
                )
            ),
            _Endpoint("POST", "/v2/repository/index", self._index, "Lists the models."),
            _Endpoint(
                "POST",
                "/v2/repository/models/{model}/load",
                self._load,
                "Loads a model anew from where it came from; no request is lost.",
            ),
            _Endpoint("GET", "/metrics", self._metrics, "Prometheus' text format."),
            _Endpoint("GET", "/openapi.json", self._openapi, "This description.", open=True),
            _Endpoint("GET", "/docs", _page("docs.html"), "This description, for people.", open=True),
            _Endpoint("GET", "/", _page("index.html"), "A page to try the models.", open=True),
        ]
        routes = [Route(e.path, self._guarded(e), methods=[e.method]) for e in self._endpoints]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: _unrouted, Exception: _failed})
        self.app.router.redirect_slashes = False

    def _guarded(self, endpoint: _Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                if not endpoint.open:
                    self._security.check(request.headers.get("authorization", ""))
                if endpoint.method == "GET":
                    return await endpoint.answer(request, b"")
                # A browser says so when a page of another site sends a form to this server.
                if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
                    raise Forbidden("this request comes from a page of another site")
                with self._body(request) as body:
                    return await endpoint.answer(request, await body)
            except ServingError as error:
                return _error(error)
            except RecursionError:
                return _error(RequestError("the body is nested too deeply"))
            except ClientDisconnect:
                raise asyncio.CancelledError from None
            except Exception as error:  # its text is not meant for clients
                logging.exception("a request failed")
                return _error(ServingError(f"scoring failed ({type(error).__name__}); see the server's log"))

        return answer

    @contextlib.contextmanager
    def _body(self, request: Request) -> Iterator[Awaitable[bytes]]:
        """Yields what reads the body, and holds its size against all requests' limit while the request lasts."""
        size = 0

        def check(total: int) -> None:
            if total > _MAX_BODY:
                raise TooLarge(f"the body has more than {_MAX_BODY} bytes; send fewer sequences at a time")

        def grow(by: int) -> None:
            nonlocal size
            check(size + by)
            if self._held + by > _MAX_BODIES:
                raise Overloaded(f"{self._held} bytes of requests are in progress; try again later")
            size, self._held = size + by, self._held + by

        async def read() -> bytes:
            if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
                raise RequestError(f"Content-Encoding is {encoding!r:.40}; send the body uncompressed")
            check(int(request.headers.get("content-length", 0)))
            chunks = []
            try:
                async with asyncio.timeout(_BODY_SECONDS):
                    async for chunk in request.stream():
                        grow(len(chunk))  # what is only announced costs nothing
                        chunks.append(chunk)
            except TimeoutError:
                raise TooSlow(f"the body took longer than {_BODY_SECONDS:g} seconds") from None
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)

        try:
            yield read()
        finally:
            self._held -= size

    def _call(self, request: Request, parameters: dict[str, Any]) -> Call:
        client = request.headers.get("x-client-id") or (request.client.host if request.client else "")
        return read_call(parameters, client, asyncio.get_running_loop().time(), None)

    async def _infer(self, request: Request, body: bytes) -> Response:
        name, version = request.path_params["model"], request.path_params.get("version", "")
        model = self._registry.service(name, version)
        asked = read_infer(body, request.headers.get(LENGTH_HEADER), model.inputs)
        check_outputs(asked.outputs, model)
        outputs = await self._registry.infer(name, version, asked.tensors, self._call(request, asked.parameters))
        content, header_length = write_infer(asked, name, chosen_outputs(list(asked.outputs), outputs))
        if header_length is None:
            return Response(content, media_type="application/json")
        headers = {LENGTH_HEADER: str(header_length)}
        return Response(content, media_type="application/octet-stream", headers=headers)

    def _contract(self, function: Callable[[ModelRegistry, dict, Call], Awaitable[Any]]) -> Callable:
        async def answer(request: Request, body: bytes) -> Response:
            return JSONResponse(await function(self._registry, parse_json(body), self._call(request, {})))

        return answer

    def _describe(self, description: Callable) -> Callable:
        async def answer(request: Request, _: bytes) -> Response:
            name, version = request.path_params["model"], request.path_params.get("version", "")
            return JSONResponse(description(name, self._registry.service(name, version)))

        return answer

    async def _live(self, request: Request, _: bytes) -> Response:
        return Response()

    async def _ready(self, request: Request, _: bytes) -> Response:
        return Response(status_code=200 if self._registry.ready else 503)

    async def _model_ready(self, request: Request, _: bytes) -> Response:
        service = self._registry.service(request.path_params["model"], request.path_params.get("version", ""))
        return Response(status_code=200 if service.ready else 503)

    async def _server(self, request: Request, _: bytes) -> Response:
        extensions = ["binary_tensor_data", "model_configuration", "model_repository"]
        return JSONResponse({"name": "rmjax", "version": rmjax.__version__, "extensions": extensions})

    async def _index(self, request: Request, body: bytes) -> Response:
        only_ready = field(parse_json(body), "ready", bool, False) if body else False
        return JSONResponse(self._registry.index(only_ready))

    async def _load(self, request: Request, body: bytes) -> Response:
        if body and (given := parse_json(body).get("parameters")):
            raise RequestError(
                f"a load has the parameters {given!s:.60}; expected none: a model is loaded from the "
                "path that the server was started with"
            )
        await self._registry.load(request.path_params["model"])
        return JSONResponse({})

    async def _metrics(self, request: Request, _: bytes) -> Response:
        return Response(self._registry.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _openapi(self, request: Request, _: bytes) -> Response:
        paths, text = dict[str, dict](), {"type": "string"}
        for endpoint in self._endpoints:
            names = [part[1:-1] for part in endpoint.path.split("/") if part.startswith("{")]
            body = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}
            paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = {
                "summary": endpoint.about.splitlines()[0],
                "description": endpoint.about,
                "parameters": [{"name": n, "in": "path", "required": True, "schema": text} for n in names],
                "responses": {
                    "200": {"description": "the answer"},
                    "default": {
                        "description": "an error",
                        "content": {"application/json": {"schema": {"type": "object", "properties": {"error": text}}}},
                    },
                },
                "security": [] if endpoint.open or not self._security.token else [{"token": []}],
            } | (body if endpoint.method == "POST" else {})
        schemes = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
        info = {"title": "rmjax", "version": rmjax.__version__}
        return JSONResponse({"openapi": "3.1.0", "info": info, "paths": paths, "components": schemes})


def _page(name: str) -> Callable:
    text = (importlib.resources.files("rmjax.serving.http") / "pages" / name).read_text(encoding="utf-8")

    async def answer(request: Request, _: bytes) -> Response:
        return HTMLResponse(text, headers=_PAGE_HEADERS)

    return answer


def _error(error: ServingError) -> Response:
    headers = {}
    if (retry := getattr(error, "retry_after", None)) is not None:
        headers["retry-after"] = str(math.ceil(retry))
    if isinstance(error, TooLarge | TooSlow):
        headers["connection"] = "close"  # what is left of the body is not read
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": str(error)}, error.status, headers)


def _unrouted(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else NotFound.status
    allowed = (error.headers or {}) if isinstance(error, HTTPException) else {}
    message = f"{request.method} {request.url.path:.200} is not served; see /docs"
    return JSONResponse({"error": message}, status, allowed)


def _failed(request: Request, error: Exception) -> Response:
    return _error(ServingError("the request failed; see the server's log"))


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the program, which serves gRPC too."""
        yield


class HttpServer:
    """A listening server.

    Args:
      host, port: where to listen; port 0 takes any free one, which `port` then names.

    Raises:
      InputError: the address cannot be listened on.
    """

    def __init__(self, registry: ModelRegistry, host: str, port: int, security: Security | None = None):
        security = security or Security()
        context = security.context()
        config = uvicorn.Config(
            HttpApplication(registry, security).app,
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
            backlog=_BACKLOG,
        )
        config.load()
        config.ssl = context
        self._server, self._task = _Uvicorn(config), None
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # The protocol is named, for asyncio sets TCP_NODELAY on no other socket.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
            self._socket.listen(_BACKLOG)  # so that a taken port is found here
        except OSError as error:
            self._socket.close()
            raise InputError(f"cannot listen on {host}:{port} ({error}); port 0 takes any free one") from error
        self.port = self._socket.getsockname()[1]

    async def start(self) -> None:
        """Listens; live, but not ready."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Refuses new connections, answers what has arrived, and ends."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
