"""The HTTP frontend: the Open Inference Protocol v2, endpoints of other servers, metrics, and web pages."""

import asyncio
import contextlib
import math
import time
import typing
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import rmjax
from rmjax.serving import errors
from rmjax.serving.http import compat, schemas, sglang
from rmjax.serving.http.connection import BACKLOG, LimitedProtocol, listen
from rmjax.serving.http.decoding import decode, parse_json
from rmjax.serving.http.hosts import HostCheck
from rmjax.serving.http.html import page
from rmjax.serving.http.openapi import Endpoint, openapi
from rmjax.serving.http.routing import Routes, header
from rmjax.serving.http.tensors import LENGTH_HEADER, read_infer, write_infer
from rmjax.serving.http.text_classification import text_classification
from rmjax.serving.protocol import Call, check_outputs, model_configuration, model_metadata, read_call, select_outputs
from rmjax.serving.registry import ModelRegistry
from rmjax.serving.security import Security

_MAX_BODY = 128 << 20  # bytes of one request; the critic's training batches reach 84 MB
_MAX_BODIES = 1 << 30  # bytes of all requests in flight
_BODY_SECONDS = 120.0  # from the end of a request's headers to the end of its body
_KEEP_ALIVE = 600  # seconds that an idle connection stays open, since RL loops pause between rollouts


class HttpApplication:
    """Answers HTTP requests; `app` is the ASGI application."""

    def __init__(self, registry: ModelRegistry, security: Security):
        self._registry, self._security = registry, security
        self._started = int(time.time())
        self._held = 0  # bytes of the bodies of all requests in flight
        json_object = dict[str, Any]
        endpoints = [
            *(
                endpoint
                for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
                for endpoint in (
                    Endpoint("POST", path + "/infer", self._infer, schemas.InferBody, schemas.InferResponse),
                    Endpoint("GET", path, self._metadata, None, json_object),
                    Endpoint("GET", path + "/config", self._configuration, None, json_object),
                    Endpoint("GET", path + "/ready", self._model_ready),
                )
            ),
            self._compatible("/get_reward", compat.get_reward),
            self._compatible("/classify", compat.classify),
            self._compatible("/v1/classify", compat.classify),
            self._compatible("/encode", sglang.encode),
            self._compatible("/pooling", compat.pooling),
            self._compatible("/v1/embeddings", compat.embeddings),
            self._compatible("/predict", compat.predict),
            self._compatible("/score", compat.score),
            self._compatible("/v1/score/evaluation", compat.score_evaluation),
            self._compatible("/", text_classification),
            self._compatible("/tokenize", compat.tokenize),
            Endpoint("GET", "/v2/health/live", self._live, public=True),
            Endpoint("GET", "/v2/health/ready", self._ready, public=True),
            Endpoint("GET", "/health", self._ready, public=True),
            Endpoint("GET", "/v1/models", self._models, None, schemas.ModelList),
            Endpoint("GET", "/v2", self._server, None, json_object),
            Endpoint("POST", "/v2/repository/index", self._index, schemas.IndexBody, list[json_object]),
            Endpoint("POST", "/v2/repository/models/{model}/load", self._load, schemas.LoadBody, json_object),
            Endpoint("GET", "/metrics", self._metrics),
            Endpoint("GET", "/openapi.json", self._openapi, None, json_object, public=True),
            Endpoint("GET", "/docs", page("docs.html", "Documentation of these endpoints."), public=True),
            Endpoint("GET", "/", page("index.html", "A page to try the models."), public=True),
        ]
        self._document = openapi(endpoints, bool(security.token))
        routes = [Route(e.path, self._handler(e), methods=[e.method]) for e in endpoints]
        failed = lambda request, error: _error(errors.ServingError("the request failed; see the server's log"))
        starlette = Starlette(routes=routes, exception_handlers={HTTPException: _not_routed, Exception: failed})
        starlette.router.redirect_slashes = False
        self.app = Routes(routes, starlette)

    def _handler(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                if not endpoint.public:
                    self._security.check(header(request.scope, "authorization"))
                if endpoint.method == "GET":
                    return await endpoint.answer(request, b"")
                # Set by browsers: prevents pages of other sites from sending requests to this server.
                if header(request.scope, "sec-fetch-site", "none") not in ("none", "same-origin"):
                    raise errors.Forbidden("this request comes from a page of another site")
                with self._body(request) as body:
                    return await endpoint.answer(request, await body)
            except RecursionError:
                return _error(errors.RequestError("the body is nested too deeply"))
            except ClientDisconnect:
                raise asyncio.CancelledError from None
            except Exception as error:
                return _error(errors.public_error(error))

        return answer

    @contextlib.contextmanager
    def _body(self, request: Request) -> Iterator[Awaitable[bytes]]:
        """Yields a coroutine that reads the body; its size counts toward `_MAX_BODIES` until the context ends."""
        size = 0

        def check(total: int) -> None:
            if total > _MAX_BODY:
                raise errors.PayloadTooLarge(
                    f"the body has more than {_MAX_BODY} bytes; send fewer sequences per request"
                )

        async def read() -> bytes:
            nonlocal size
            if (encoding := header(request.scope, "content-encoding", "identity")) != "identity":
                raise errors.RequestError(f"Content-Encoding is {encoding!r:.40}; send the body uncompressed")
            check(int(header(request.scope, "content-length", "0")))
            chunks = []
            try:
                async with asyncio.timeout(_BODY_SECONDS):
                    async for chunk in request.stream():
                        # Bytes count when they arrive: announced ones must not exclude other clients.
                        check(size + len(chunk))
                        if self._held + len(chunk) > _MAX_BODIES:
                            raise errors.Overloaded(f"{self._held} bytes of requests are in flight; try again later")
                        size, self._held = size + len(chunk), self._held + len(chunk)
                        chunks.append(chunk)
            except TimeoutError:
                raise errors.RequestTimeout(f"the body took longer than {_BODY_SECONDS:g} seconds") from None
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)

        try:
            yield read()
        finally:
            self._held -= size

    def _call(self, request: Request, parameters: dict[str, Any]) -> Call:
        client = header(request.scope, "x-client-id") or (request.client.host if request.client else "")
        return read_call(parameters, client, asyncio.get_running_loop().time(), None)

    async def _infer(self, request: Request, body: bytes) -> Response:
        """Runs a model on input tensors.

        `parameters` of the request may have `truncate` (cut sequences that are too long), `add_eos` or its alias
        `close` (tokenize strings with special tokens and EOS, as in training) and `timeout` (microseconds).
        With the header Inference-Header-Content-Length, binary tensors follow the JSON.
        """
        name, version = _model_of(request)
        with self._registry.acquire(name, version) as model:
            parsed, tensors = read_infer(body, header(request.scope, LENGTH_HEADER), model.inputs)
            names = [output.name for output in parsed.outputs or []]
            check_outputs(names, model)
            outputs = await model.infer(tensors, call := self._call(request, parsed.parameters or {}))
        content, header_length = write_infer(parsed, name, select_outputs(names, outputs), call.notes)
        if header_length is None:
            return Response(content, media_type="application/json")
        headers = {LENGTH_HEADER: str(header_length)}
        return Response(content, media_type="application/octet-stream", headers=headers)

    def _compatible(self, path: str, function: Callable[..., Awaitable[Any]]) -> Endpoint:
        hints = typing.get_type_hints(function)

        async def answer(request: Request, body: bytes) -> Response:
            call = self._call(request, {})
            found = await compat.respond(function, hints["body"], self._registry, parse_json(body), call)
            return Response(msgspec.json.encode(found), media_type="application/json")

        answer.__doc__ = function.__doc__
        return Endpoint("POST", path, answer, hints["body"], hints["return"])

    async def _metadata(self, request: Request, _: bytes) -> Response:
        """Returns the model's tensors and its model card."""
        return JSONResponse(model_metadata(request.path_params["model"], self._registry.get(*_model_of(request))))

    async def _configuration(self, request: Request, _: bytes) -> Response:
        """Returns the model's configuration in Triton's form."""
        return JSONResponse(model_configuration(request.path_params["model"], self._registry.get(*_model_of(request))))

    async def _model_ready(self, request: Request, _: bytes) -> Response:
        """Returns 200 if the model is ready, else 503."""
        return Response(status_code=200 if self._registry.get(*_model_of(request)).ready else 503)

    async def _live(self, request: Request, _: bytes) -> Response:
        """Returns 200 while the process is running."""
        return Response()

    async def _ready(self, request: Request, _: bytes) -> Response:
        """Returns 200 if all models are ready, else 503."""
        return Response(status_code=200 if self._registry.ready else 503)

    async def _server(self, request: Request, _: bytes) -> Response:
        """Returns the server's name and version, and the protocol extensions that it supports."""
        extensions = ["binary_tensor_data", "model_configuration", "model_repository"]
        return JSONResponse({"name": "rmjax", "version": rmjax.__version__, "extensions": extensions})

    async def _models(self, request: Request, _: bytes) -> Response:
        """Lists the models, as vLLM and SGLang do."""
        models = []
        for name in self._registry.names:
            length = self._registry.get(name).metadata.get("max_length")
            models.append(schemas.ModelEntry(name, "model", self._started, "rmjax", name, length))
        return Response(msgspec.json.encode(schemas.ModelList("list", models)), media_type="application/json")

    async def _index(self, request: Request, body: bytes) -> Response:
        """Lists the models and their states."""
        return JSONResponse(self._registry.index(bool(body and decode(body, schemas.IndexBody).ready)))

    async def _load(self, request: Request, body: bytes) -> Response:
        """Reloads a model from its path without downtime."""
        if body and (given := decode(body, schemas.LoadBody).parameters):
            raise errors.RequestError(
                f"'parameters' of the body is {given!s:.60}; expected none: a model is loaded from the path with which "
                "the server was started"
            )
        await self._registry.load(request.path_params["model"])
        return JSONResponse({})

    async def _metrics(self, request: Request, _: bytes) -> Response:
        """Returns the metrics in Prometheus' text format."""
        return Response(self._registry.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _openapi(self, request: Request, _: bytes) -> Response:
        """Returns the OpenAPI document of these endpoints."""
        return JSONResponse(self._document)


def _model_of(request: Request) -> tuple[str, str]:
    """Returns the name and version of the model in the request's path."""
    return request.path_params["model"], request.path_params.get("version", "")


def _error(error: errors.ServingError) -> Response:
    headers = {}
    if (retry := getattr(error, "retry_after", None)) is not None:
        headers["retry-after"] = str(math.ceil(retry))
    if isinstance(error, errors.PayloadTooLarge | errors.RequestTimeout):
        headers["connection"] = "close"  # the rest of the body is not read
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse({"error": str(error)}, error.status, headers)


def _not_routed(request: Request, error: Exception) -> Response:
    status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (404, None)
    fix = f"send {headers['Allow']}" if headers and "Allow" in headers else "see /docs for the paths"
    message = f"{request.method} {request.url.path:.200} is not served; {fix}"
    return JSONResponse({"error": message}, status, headers)


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the program, which also serves gRPC."""
        yield


class HttpServer:
    """A listening server.

    Args:
      host, port: the address to bind; with port 0, a free port, available as `port`.

    Raises:
      InputError: the address cannot be bound.
    """

    def __init__(self, registry: ModelRegistry, host: str, port: int, security: Security | None = None):
        security = security or Security()
        self._socket = listen(host, port)
        address, self.port = self._socket.getsockname()[:2]
        app, known = HttpApplication(registry, security).app, security.known_hosts(host, address)
        config = uvicorn.Config(
            app if known is None else HostCheck(app, known),
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
            backlog=BACKLOG,
        )
        config.load()
        config.ssl = security.context()
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens; live, but not ready."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started and not self._task.done():
            await asyncio.sleep(0.01)

    def release(self) -> None:
        """Frees the port of a server that was not started."""
        self._socket.close()

    async def stop(self) -> None:
        """Refuses new connections, answers requests in flight, and stops."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
