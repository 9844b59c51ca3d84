"""A server's gRPC and HTTP frontends, from start to shutdown."""

import asyncio
import gc
import signal
import sys

from rmjax.serving.grpc.server import GrpcServer
from rmjax.serving.http.server import HttpServer
from rmjax.serving.registry import ModelRegistry
from rmjax.serving.security import Security

# A request crosses threads several times; Python's default of 5 ms a switch can exceed the time of a response.
_SWITCH_SECONDS = 0.0005
_GC_THRESHOLD = 20_000, 20, 20  # new objects before a collection; a thousand requests in flight have about as many


class Server:
    """Models behind a gRPC and an HTTP port.

    Raises:
      InputError: a port cannot be bound.
    """

    def __init__(
        self, registry: ModelRegistry, host: str, grpc_port: int, http_port: int, security: Security | None = None
    ):
        self.registry = registry
        self.grpc = GrpcServer(registry, host, grpc_port, security)
        self.http = HttpServer(registry, host, http_port, security)

    async def start(self) -> None:
        """Listens; live, but not ready."""
        await self.grpc.start()
        await self.http.start()

    async def warm_up(self) -> None:
        """Warms up every model; ready from then on."""
        await self.registry.start()
        await self.grpc.set_ready()

    async def stop(self) -> None:
        """Refuses new requests, answers those in flight, and closes the models."""
        await asyncio.gather(self.grpc.stop(), self.http.stop())
        await self.registry.close()


async def serve(registry: ModelRegistry, host: str, grpc_port: int, http_port: int, security: Security) -> None:
    """Serves until SIGTERM or Ctrl-C, then drains."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    server = Server(registry, host, grpc_port, http_port, security)
    await server.start()
    print(f"warming up; until then {host}:{server.grpc.port} answers NOT_SERVING", flush=True)
    warming, waiting = asyncio.create_task(server.warm_up()), asyncio.create_task(stopping.wait())
    await asyncio.wait((warming, waiting), return_when=asyncio.FIRST_COMPLETED)
    await warming  # compilation cannot be interrupted; raises if warming up failed
    # Loaded modules and weights stay: scanning them in every collection cost a third of the rate at 1,024 clients.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLD)
    print(f"gRPC on {host}:{server.grpc.port}", flush=True)
    print(f"HTTP on {host}:{server.http.port}", flush=True)
    await waiting
    print("draining", flush=True)
    await server.stop()
