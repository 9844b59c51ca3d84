"""The gRPC face: the Open Inference Protocol v2, health and reflection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from absl import logging
from google.protobuf import json_format, message, message_factory
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2

import rmjax
from rmjax.core.errors import InputError
from rmjax.serving.errors import RequestError, ServingError
from rmjax.serving.grpc.tensors import add_output, read_inputs, read_parameters
from rmjax.serving.in_flight import Progress
from rmjax.serving.protocol import (
    VERSION,
    check_outputs,
    chosen_outputs,
    model_configuration,
    model_metadata,
    read_call,
)
from rmjax.serving.registry import ModelRegistry
from rmjax.serving.security import Security

_SERVICE = "inference.GRPCInferenceService"
_MAX_MESSAGE = 128 << 20  # bytes; the critic's training batches reach 84 MB
_MAX_METADATA = 16 << 10  # bytes
_MAX_PENDING = 1 << 16  # calls
_GRACE = 100.0  # seconds that calls in flight have to end when the server stops; less than deploy/ gives the process
_SETTLED = 0.1  # seconds without a call in progress
_LAST_GRACE = 5.0  # seconds that their last answers have to leave
_STREAM_AHEAD = 64  # requests of one stream that are worked on at once


class _Garbage:
    """A message that is no protobuf of the expected type."""


class InferenceService:
    """`inference.GRPCInferenceService`: one method for each of the protocol's that is served."""

    def __init__(self, registry: ModelRegistry):
        self._registry = registry
        self._readers = set[asyncio.Task]()  # of streams
        self.calls = Progress()

    async def finish(self) -> None:
        """Returns when all calls in progress have ended; streams are answered what they have asked so far."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.sleep(_SETTLED)  # one that has arrived may not have begun
        while not self.calls.idle.is_set():
            await self.calls.idle.wait()
            await asyncio.sleep(_SETTLED)

    async def ServerLive(self, request, context):
        """Says that the process answers."""
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request, context):
        """Says whether requests are scored now."""
        return service_pb2.ServerReadyResponse(ready=self._registry.ready)

    async def ModelReady(self, request, context):
        """Says whether the model is scored with now."""
        return service_pb2.ModelReadyResponse(ready=self._model(request).ready)

    async def ServerMetadata(self, request, context):
        """Names the server."""
        return service_pb2.ServerMetadataResponse(name="rmjax", version=rmjax.__version__, extensions=[])

    async def ModelMetadata(self, request, context):
        """Names the model's tensors."""
        return _parse(model_metadata(request.name, self._model(request)), service_pb2.ModelMetadataResponse())

    async def ModelConfig(self, request, context):
        """Says what PyTriton's clients must know."""
        found = {"config": model_configuration(request.name, self._model(request))}
        return _parse(found, service_pb2.ModelConfigResponse())

    async def RepositoryIndex(self, request, context):
        """Lists the models."""
        return _parse({"models": self._registry.index(request.ready)}, service_pb2.RepositoryIndexResponse())

    async def RepositoryModelLoad(self, request, context):
        """Loads a model anew from where it came from."""
        if request.parameters:
            raise RequestError(
                f"a load has the parameters {sorted(request.parameters)}; expected none: a model is "
                "loaded from the path that the server was started with"
            )
        await self._registry.load(request.model_name)
        return service_pb2.RepositoryModelLoadResponse()

    async def ModelInfer(self, request, context):
        """Answers one request."""
        now, left = asyncio.get_running_loop().time(), context.time_remaining()
        call = read_call(read_parameters(request), _client(context), now, left)
        name, version = request.model_name, request.model_version
        model, wanted = self._registry.service(name, version), [output.name for output in request.outputs]
        tensors = read_inputs(request, model.inputs)
        check_outputs(wanted, model)
        outputs = await self._registry.infer(name, version, tensors, call)
        response = service_pb2.ModelInferResponse(model_name=name, model_version=VERSION, id=request.id)
        for output, values in chosen_outputs(wanted, outputs).items():
            add_output(response, output, values)
        return response

    async def ModelStreamInfer(self, requests: AsyncIterator, context) -> AsyncIterator:
        """Answers the requests of a stream in their order, several at a time; an error does not end the stream."""
        answers: asyncio.Queue[asyncio.Task | None] = asyncio.Queue()
        room = asyncio.Semaphore(_STREAM_AHEAD)

        async def read() -> None:
            try:
                async for request in requests:
                    await room.acquire()
                    answers.put_nowait(asyncio.create_task(self._stream_answer(request, context)))
            finally:
                answers.put_nowait(None)

        reader = asyncio.create_task(read())
        self._readers.add(reader)
        try:
            with self.calls.one():
                while (answer := await answers.get()) is not None:
                    yield await answer
                    room.release()
        finally:  # also when the client is gone
            self._readers.discard(reader)
            reader.cancel()
            while not answers.empty():
                if (answer := answers.get_nowait()) is not None:
                    answer.cancel()

    async def _stream_answer(self, request, context) -> service_pb2.ModelStreamInferResponse:
        try:
            if isinstance(request, _Garbage):
                raise RequestError("a message of the stream is no ModelInferRequest")
            return service_pb2.ModelStreamInferResponse(infer_response=await self.ModelInfer(request, context))
        except Exception as error:
            response = service_pb2.ModelStreamInferResponse(error_message=str(_for_client(error)))
            response.infer_response.id = getattr(request, "id", "")
            return response

    def _model(self, request):
        return self._registry.service(request.name, request.version)


def _handlers(service: InferenceService) -> grpc.GenericRpcHandler:
    """Returns handlers of the methods that `service` has; gRPC answers UNIMPLEMENTED for the others.

    They parse messages themselves: gRPC would answer a message that is no protobuf, as any exception, with UNKNOWN and
    the exception's text.
    """
    handlers = {}
    for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        if (behaviour := getattr(service, method.name, None)) is None:
            continue
        parse = _parser(message_factory.GetMessageClass(method.input_type))
        write = message_factory.GetMessageClass(method.output_type).SerializeToString
        if method.server_streaming:
            handlers[method.name] = grpc.stream_stream_rpc_method_handler(behaviour, parse, write)
        else:
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(_answered(service, behaviour), parse, write)
    return grpc.method_handlers_generic_handler(_SERVICE, handlers)


def _parser(kind: type[message.Message]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        try:
            return kind.FromString(data)
        except message.DecodeError:
            return _Garbage()

    return parse


def _answered(service: InferenceService, behaviour: Callable) -> Callable:
    async def call(request, context):
        with service.calls.one():
            try:
                if isinstance(request, _Garbage):
                    raise RequestError("the message is no protobuf of the method's request")
                return await behaviour(request, context)
            except Exception as error:
                await _abort(context, _for_client(error))

    return call


def _for_client(error: Exception) -> ServingError:
    """Returns the error as the client may see it: no text of an exception that was not meant for it."""
    if isinstance(error, ServingError):
        return error
    logging.exception("a request failed")
    return ServingError(f"scoring failed ({type(error).__name__}); see the server's log")


async def _abort(context, error: ServingError) -> None:
    retry = getattr(error, "retry_after", None)
    trailing = () if retry is None else (("grpc-retry-pushback-ms", str(round(1000 * retry))),)
    await context.abort(grpc.StatusCode[error.code], str(error), trailing)


def _client(context) -> str:
    """Returns whose turn a call is: the metadata `x-client-id`, or the address it comes from."""
    found = dict(context.invocation_metadata() or ()).get("x-client-id")
    return found or context.peer().rpartition(":")[0]


def _parse(found: dict[str, Any], into: message.Message) -> message.Message:
    return json_format.ParseDict(found, into, ignore_unknown_fields=True)


class _Authentication(grpc.aio.ServerInterceptor):
    """Refuses calls without the token, except of the health service: probes have none."""

    def __init__(self, security: Security):
        self._security = security

    async def intercept_service(self, continuation, details):
        handler = await continuation(details)
        if handler is None or details.method.startswith(f"/{health.SERVICE_NAME}/"):
            return handler
        try:
            self._security.check(str(dict(details.invocation_metadata).get("authorization", "")))
        except ServingError as error:
            refusal = error

            async def refuse(request, context):
                await _abort(context, refusal)

            async def refuse_stream(request, context):
                await _abort(context, refusal)
                yield  # makes it a generator

            if handler.response_streaming:
                make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else None
                return (make or grpc.unary_stream_rpc_method_handler)(refuse_stream)
            return grpc.unary_unary_rpc_method_handler(refuse)
        return handler


class GrpcServer:
    """A listening server; healthy only while its models are ready.

    Args:
      host, port: where to listen; port 0 takes any free one, which `port` then names.

    Raises:
      InputError: the address cannot be listened on.
    """

    def __init__(self, registry: ModelRegistry, host: str, port: int, security: Security | None = None):
        security = security or Security()
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
            ("grpc.absolute_max_metadata_size", _MAX_METADATA),
            # By itself gRPC cancels calls at random once 1,000 wait to be looked at; the engine refuses by name.
            ("grpc.server.max_pending_requests", _MAX_PENDING),
            ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
            # Without it a second server on a taken port would silently share its calls.
            ("grpc.so_reuseport", 0),
        ]
        interceptors = [_Authentication(security)] if security.token else []
        self._server = grpc.aio.server(options=options, interceptors=interceptors)
        self._service = InferenceService(registry)
        self._server.add_generic_rpc_handlers((_handlers(self._service),))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        credentials = security.grpc_credentials()
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port = (
                self._server.add_secure_port(address, credentials)
                if credentials
                else self._server.add_insecure_port(address)
            )
        except RuntimeError as error:
            raise InputError(f"cannot listen on {address} ({error}); port 0 takes any free one") from error

    async def start(self) -> None:
        """Listens; live, but not ready."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()

    async def set_ready(self) -> None:
        """Says that all models are warm."""
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Turns unhealthy, refuses new calls, answers those in flight, and ends."""
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._server.stop(_GRACE))  # refuses new calls
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._service.finish(), _GRACE)
        await self._server.stop(_LAST_GRACE)  # whoever watches the health service would stay for ever
        await stopping

    async def _set_health(self, status: int) -> None:
        for name in ("", _SERVICE):
            await self._health.set(name, status)
