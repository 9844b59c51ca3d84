"""The gRPC face: the Open Inference Protocol v2, health and reflection."""

import asyncio
import signal
from collections.abc import Callable

import grpc
from absl import logging
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2, service_pb2_grpc

import rmjax
from rmjax.core.errors import InputError
from rmjax.serving import reward_model
from rmjax.serving.engine import NotFinite, NotServing, Overloaded, RequestError
from rmjax.serving.reward_model import RewardService
from rmjax.serving.tensors import add_output, read_inputs

_SERVICE = "inference.GRPCInferenceService"
_MAX_MESSAGE = 64 << 20  # bytes; gRPC's own 4 MiB is 512 sequences of 1,024 tokens
_GRACE = 30.0  # seconds that calls in flight have to end when the server stops
_VERSION = "1"  # of the one model that is served
_CODES = {
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotServing: grpc.StatusCode.UNAVAILABLE,
    NotFinite: grpc.StatusCode.INTERNAL,
}


class InferenceService(service_pb2_grpc.GRPCInferenceServiceServicer):
    """`inference.GRPCInferenceService` with the one model `reward_model`."""

    def __init__(self, service: RewardService):
        self._service = service

    async def ServerLive(self, request, context):
        """Says that the process answers."""
        return service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(self, request, context):
        """Says whether requests are scored now."""
        return service_pb2.ServerReadyResponse(ready=self._service.engine.ready)

    async def ModelReady(self, request, context):
        """Says whether the model is scored with now."""
        await self._check_model(request.name, request.version, context)
        return service_pb2.ModelReadyResponse(ready=self._service.engine.ready)

    async def ServerMetadata(self, request, context):
        """Names the server."""
        return service_pb2.ServerMetadataResponse(name="rmjax", version=rmjax.__version__, extensions=[])

    async def ModelMetadata(self, request, context):
        """Names the model's tensors; -1 is a size that the client chooses."""
        await self._check_model(request.name, request.version, context)
        tensor = service_pb2.ModelMetadataResponse.TensorMetadata
        shapes = reward_model.INPUT_SHAPES
        outputs = [tensor(name=reward_model.OUTPUT, datatype="FP32", shape=[-1, len(self._service.attributes)])]
        return service_pb2.ModelMetadataResponse(
            name=reward_model.NAME,
            versions=[_VERSION],
            platform="jax",
            inputs=[tensor(name=name, datatype=kind, shape=shapes[name]) for name, kind in reward_model.INPUTS.items()],
            outputs=outputs,
        )

    async def ModelInfer(self, request, context):
        """Scores a request's sequences."""
        await self._check_model(request.model_name, request.model_version, context)
        try:
            unknown = [output.name for output in request.outputs if output.name != reward_model.OUTPUT]
            if unknown:
                raise RequestError(f"unknown output tensor {unknown[0]!r}; this model gives {reward_model.OUTPUT}")
            rewards = await self._service.rewards(read_inputs(request, reward_model.INPUTS))
        except tuple(_CODES) as error:
            await context.abort(_CODES[type(error)], str(error))
        except Exception as error:
            logging.exception("a request failed")
            await context.abort(grpc.StatusCode.INTERNAL, f"scoring failed ({type(error).__name__}); see the log")
        response = service_pb2.ModelInferResponse(model_name=reward_model.NAME, model_version=_VERSION, id=request.id)
        add_output(response, reward_model.OUTPUT, rewards)
        return response

    async def _check_model(self, name: str, version: str, context) -> None:
        if name != reward_model.NAME:
            message = f"unknown model {name!r}; this server has {reward_model.NAME}"
            await context.abort(grpc.StatusCode.NOT_FOUND, message)
        if version not in ("", _VERSION):
            message = f"model {name!r} has no version {version!r}; leave it empty, or give {_VERSION}"
            await context.abort(grpc.StatusCode.NOT_FOUND, message)


class GrpcServer:
    """A listening server; healthy only while its engine is ready.

    Args:
      host, port: where to listen; port 0 takes any free one, which `port` then names.

    Raises:
      InputError: the address cannot be listened on.
    """

    def __init__(self, service: RewardService, host: str, port: int):
        self._service = service
        options = [("grpc.max_receive_message_length", _MAX_MESSAGE), ("grpc.max_send_message_length", _MAX_MESSAGE)]
        # Without it a second server on a taken port would silently share its calls.
        self._server = grpc.aio.server(options=[*options, ("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(InferenceService(service), self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        try:
            self.port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise InputError(f"cannot listen on {host}:{port} ({error}); port 0 takes any free one") from error

    async def start(self) -> None:
        """Listens; live, but not ready."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()

    async def warm_up(self) -> None:
        """Warms the engine up; healthy from then on."""
        await self._service.engine.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Turns unhealthy, refuses new calls, answers those in flight, and ends."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(_GRACE)
        await self._service.engine.drain()
        self._service.close()

    async def _set_health(self, status: int) -> None:
        for name in ("", _SERVICE):
            await self._health.set(name, status)


async def serve(make_service: Callable[[], RewardService], host: str, port: int) -> None:
    """Serves until SIGTERM or Ctrl-C, then drains.

    Args:
      make_service: called within the event loop.
    """
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = GrpcServer(make_service(), host, port)
    await server.start()
    print(f"warming up; until then {host}:{server.port} answers NOT_SERVING", flush=True)
    warming, waiting = asyncio.create_task(server.warm_up()), asyncio.create_task(stopping.wait())
    await asyncio.wait((warming, waiting), return_when=asyncio.FIRST_COMPLETED)
    await warming  # a compiler cannot be interrupted; and it may have failed
    print(f"gRPC on {host}:{server.port}", flush=True)
    await waiting
    print("draining", flush=True)
    await server.stop()
