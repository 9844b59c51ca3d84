"""The gRPC frontend: the Open Inference Protocol v2, health and reflection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf import json_format, message, message_factory
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2

import rmjax
from rmjax.core.errors import InputError
from rmjax.serving import protocol
from rmjax.serving.errors import RequestError, ServingError, public_error
from rmjax.serving.grpc.tensors import add_output, read_inputs, read_parameters
from rmjax.serving.in_flight import InFlight
from rmjax.serving.registry import ModelRegistry
from rmjax.serving.security import Security

_SERVICE = "inference.GRPCInferenceService"
_MAX_MESSAGE = 128 << 20  # bytes; the critic's training batches reach 84 MB
_MAX_METADATA = 16 << 10  # bytes
_MAX_PENDING = 1 << 16  # calls
_GRACE = 100.0  # seconds for calls in flight to end when the server stops; less than deploy/ grants the process
_SETTLED = 0.1  # seconds without a call in flight
_LAST_GRACE = 5.0  # seconds to send the last responses
_MARK = "rmjax-server"  # metadata of errors
_STREAM_IN_FLIGHT = 64  # requests of one stream in flight


class _Malformed:
    """A message that cannot be parsed as its type."""


class InferenceService:
    """The methods of `inference.GRPCInferenceService` that are implemented."""

    def __init__(self, registry: ModelRegistry):
        self._registry = registry
        self._readers = set[asyncio.Task]()  # of streams
        self.calls = InFlight()

    async def finish(self) -> None:
        """Returns when no call is in flight; streams end after the responses to the requests read so far."""
        for reader in self._readers:
            reader.cancel()
        await asyncio.sleep(_SETTLED)  # a call that has arrived may not have started
        while not self.calls.idle.is_set():
            await self.calls.idle.wait()
            await asyncio.sleep(_SETTLED)

    async def ServerLive(self, request, context):
        """Returns whether the process is running."""
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request, context):
        """Returns whether all models are ready."""
        return service_pb2.ServerReadyResponse(ready=self._registry.ready)

    async def ModelReady(self, request, context):
        """Returns whether a model is ready."""
        return service_pb2.ModelReadyResponse(ready=self._registry.get(request.name, request.version).ready)

    async def ServerMetadata(self, request, context):
        """Returns the server's name and version."""
        return service_pb2.ServerMetadataResponse(name="rmjax", version=rmjax.__version__, extensions=[])

    async def ModelMetadata(self, request, context):
        """Returns a model's tensors."""
        model = self._registry.get(request.name, request.version)
        return _parse(protocol.model_metadata(request.name, model), service_pb2.ModelMetadataResponse())

    async def ModelConfig(self, request, context):
        """Returns a model's configuration in Triton's form."""
        model = self._registry.get(request.name, request.version)
        found = {"config": protocol.model_configuration(request.name, model)}
        return _parse(found, service_pb2.ModelConfigResponse())

    async def RepositoryIndex(self, request, context):
        """Lists the models and their states."""
        return _parse({"models": self._registry.index(request.ready)}, service_pb2.RepositoryIndexResponse())

    async def RepositoryModelLoad(self, request, context):
        """Reloads a model from its path without downtime."""
        if request.parameters:
            raise RequestError(
                f"a load request has the parameters {sorted(request.parameters)}; expected none: a model is loaded "
                "from the path with which the server was started"
            )
        await self._registry.load(request.model_name)
        return service_pb2.RepositoryModelLoadResponse()

    async def ModelInfer(self, request, context):
        """Runs a model on input tensors."""
        now, left = asyncio.get_running_loop().time(), context.time_remaining()
        name, names = request.model_name, [output.name for output in request.outputs]
        with self._registry.acquire(name, request.model_version) as model:
            call = protocol.read_call(read_parameters(request), _client(context), now, left)
            tensors = read_inputs(request, model.inputs)
            protocol.check_outputs(names, model)
            outputs = await model.infer(tensors, call)
        response = service_pb2.ModelInferResponse(model_name=name, model_version=protocol.VERSION, id=request.id)
        for output, values in protocol.select_outputs(names, outputs).items():
            add_output(response, output, values)
        for key, text in call.notes.items():
            response.parameters[key].string_param = text
        return response

    async def ModelStreamInfer(self, requests: AsyncIterator, context) -> AsyncIterator:
        """Answers the requests of a stream in order, several concurrently; a failed request does not end the stream."""
        responses: asyncio.Queue[asyncio.Task | None] = asyncio.Queue()
        slots = asyncio.Semaphore(_STREAM_IN_FLIGHT)

        async def read() -> None:
            try:
                async for request in requests:
                    await slots.acquire()
                    responses.put_nowait(asyncio.create_task(self._stream_response(request, context)))
            finally:
                responses.put_nowait(None)

        reader = asyncio.create_task(read())
        self._readers.add(reader)
        try:
            with self.calls:
                while (response := await responses.get()) is not None:
                    yield await response
                    slots.release()
        finally:  # also if the client disconnected
            self._readers.discard(reader)
            reader.cancel()
            while not responses.empty():
                if (response := responses.get_nowait()) is not None:
                    response.cancel()

    async def _stream_response(self, request, context) -> service_pb2.ModelStreamInferResponse:
        try:
            if isinstance(request, _Malformed):
                raise RequestError("a message of the stream cannot be parsed as a ModelInferRequest")
            return service_pb2.ModelStreamInferResponse(infer_response=await self.ModelInfer(request, context))
        except Exception as error:
            response = service_pb2.ModelStreamInferResponse(error_message=str(public_error(error)))
            response.infer_response.id = getattr(request, "id", "")
            return response


def _handlers(service: InferenceService) -> grpc.GenericRpcHandler:
    """Returns handlers of the methods that `service` has; for others, gRPC returns UNIMPLEMENTED.

    They parse messages themselves: for malformed ones, gRPC would return UNKNOWN with the text of the exception.
    """
    handlers = {}
    for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        if (function := getattr(service, method.name, None)) is None:
            continue
        parse = _parser(message_factory.GetMessageClass(method.input_type))
        serialize = message_factory.GetMessageClass(method.output_type).SerializeToString
        if method.server_streaming:
            handlers[method.name] = grpc.stream_stream_rpc_method_handler(function, parse, serialize)
        else:
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(_unary(service, function), parse, serialize)
    return grpc.method_handlers_generic_handler(_SERVICE, handlers)


def _parser(kind: type[message.Message]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        try:
            return kind.FromString(data)
        except message.DecodeError:
            return _Malformed()

    return parse


def _unary(service: InferenceService, function: Callable) -> Callable:
    async def call(request, context):
        with service.calls:
            try:
                if isinstance(request, _Malformed):
                    raise RequestError("the message cannot be parsed as the request of this method")
                return await function(request, context)
            except Exception as error:
                await _abort(context, public_error(error))

    return call


async def _abort(context, error: ServingError) -> None:
    retry = getattr(error, "retry_after", None)
    trailing = [(_MARK, rmjax.__version__)]  # tells clients that it is no error of the connection
    if retry is not None:
        trailing.append(("grpc-retry-pushback-ms", str(round(1000 * retry))))
    await context.abort(grpc.StatusCode[error.code], str(error), tuple(trailing))


def _client(context) -> str:
    """Returns the key of a call's client in the queue: the metadata `x-client-id`, or else its address."""
    found = dict(context.invocation_metadata() or ()).get("x-client-id")
    return found or context.peer().rpartition(":")[0]


def _parse(found: dict[str, Any], into: message.Message) -> message.Message:
    return json_format.ParseDict(found, into, ignore_unknown_fields=True)


class _Authentication(grpc.aio.ServerInterceptor):
    """Refuses calls without the token, except to the health service, since probes have none."""

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

            if handler.response_streaming:  # except in the health service, requests are a stream then
                return grpc.stream_stream_rpc_method_handler(refuse_stream)
            return grpc.unary_unary_rpc_method_handler(refuse)
        return handler


class GrpcServer:
    """A listening server; its health is SERVING while its models are ready.

    Args:
      host, port: the address to bind; with port 0, a free port, available as `port`.

    Raises:
      InputError: the address cannot be bound.
    """

    def __init__(self, registry: ModelRegistry, host: str, port: int, security: Security | None = None):
        security = security or Security()
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
            ("grpc.absolute_max_metadata_size", _MAX_METADATA),
            # By default gRPC cancels random calls once 1,000 are pending; the engine refuses them with an error.
            ("grpc.server.max_pending_requests", _MAX_PENDING),
            ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
            # By default a second server on the same port would silently share its calls.
            ("grpc.so_reuseport", 0),
        ]
        interceptors = [_Authentication(security)] if security.token else []
        self._server = grpc.aio.server(options=options, interceptors=interceptors)
        self._service = InferenceService(registry)
        self._server.add_generic_rpc_handlers((_handlers(self._service),))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials := security.grpc_credentials():
                self.port = self._server.add_secure_port(address, credentials)
            else:
                self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise InputError(f"cannot listen on {address} ({error}); port 0 takes any free one") from error

    async def start(self) -> None:
        """Listens; live, but not ready."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()

    async def set_ready(self) -> None:
        """Sets the health to SERVING."""
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Sets the health to NOT_SERVING, refuses new calls, answers those in flight, and stops."""
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self._server.stop(_GRACE))  # refuses new calls
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._service.finish(), _GRACE)
        await self._server.stop(_LAST_GRACE)  # watches of the health service never end by themselves
        await stopping

    async def _set_health(self, status: int) -> None:
        for name in ("", _SERVICE):
            await self._health.set(name, status)
