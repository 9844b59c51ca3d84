"""A server's gRPC and HTTP frontends, from start to shutdown: as a program, or in a thread of another program."""

import asyncio
import gc
import importlib.util
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from rmjax.core.errors import InputError
from rmjax.evaluation.ensemble import EnsemblePipeline
from rmjax.evaluation.pipeline import RewardPipeline
from rmjax.evaluation.rewards import with_std
from rmjax.serving.client import Client
from rmjax.serving.engine.offload import DeviceMemory
from rmjax.serving.engine.queue import Engine
from rmjax.serving.grpc.server import GrpcServer
from rmjax.serving.http.server import HttpServer
from rmjax.serving.metrics import ModelMetrics
from rmjax.serving.registry import Load, ModelRegistry
from rmjax.serving.security import Security
from rmjax.serving.services.reward import RewardService

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
        self.http = HttpServer(registry, host, http_port, security)
        try:
            self.grpc = GrpcServer(registry, host, grpc_port, security)
        except InputError:
            self.http.release()
            raise

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


def make_reward_service(
    pipeline: RewardPipeline,
    metrics: ModelMetrics,
    memory: DeviceMemory,
    *,
    queue_size: int = 4096,
    queue_tokens: int = 1 << 22,
    truncate: bool = False,
) -> RewardService:
    """Returns the service of a reward model.

    Args:
      pipeline: of a model, or of an ensemble, whose models score each batch one after another.
      memory: moves the parameters to the devices for each batch, if it offloads.
      queue_size, queue_tokens: maximum numbers of queued sequences and tokens.
      truncate: truncate sequences that are too long, instead of rejecting them.
    """
    if isinstance(pipeline, EnsemblePipeline):
        pipeline.check_one_tokenizer()
    scorer, readout = pipeline.scorer, pipeline.tokenizer.readout_place
    place = lambda trees: [readout.place(tree) for tree in trees]
    on_device = memory.resident(*(memory.register(one, "params", metrics) for one in pipeline.scorers))

    def warm_up() -> None:
        for one in pipeline.scorers:
            one.warm_up()

    engine = Engine(
        on_device(lambda trees: [with_std(rewards) for rewards in pipeline.score_trees(place(trees))]),
        on_device(warm_up),
        max_length=pipeline.max_length,
        batch_tokens=scorer.rows * scorer.row_length,
        queue_size=queue_size,
        queue_tokens=queue_tokens,
        metrics=metrics,
    )
    return RewardService(
        engine,
        pipeline.tokenizer,
        vocab_size=min(one.model.decoder.vocab_size for one in pipeline.scorers),
        attributes=pipeline.attributes,
        prompt_format=pipeline.options.strings,
        truncate=truncate,
        uncertain=pipeline.uncertain,
        metadata={**pipeline.metadata, "deterministic": scorer.deterministic},
    )


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Returns uvloop's factory, which is faster than asyncio's; None where it is not installed (Windows)."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop


class BackgroundServer:
    """A server in a thread of its own, a context manager: warm on entry, drained on exit.

    Works in notebooks, in threads and while an event loop is running.

    Args:
      loaders: {name: function that loads the model}.
      host, grpc_port, http_port: where to listen; port 0 takes a free port.

    Raises:
      InputError: a port cannot be bound, or a model cannot be loaded.
    """

    def __init__(
        self,
        loaders: Mapping[str, Load],
        *,
        host: str = "127.0.0.1",
        grpc_port: int = 0,
        http_port: int = 0,
        security: Security | None = None,
    ):
        self._loop = (event_loop_factory() or asyncio.new_event_loop)()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rmjax server", daemon=True)
        self._thread.start()
        self._names, self._token = tuple(loaders), security.token if security else ""

        async def start() -> Server:
            server = Server(ModelRegistry(loaders), host, grpc_port, http_port, security)
            await server.start()
            await server.warm_up()
            return server

        self._server: Server | None = None
        try:
            self._server = self._run(start())
        except BaseException:
            self.stop()
            raise
        self.host, self.grpc_port, self.http_port = host, self._server.grpc.port, self._server.http.port

    @property
    def url(self) -> str:
        """The HTTP address."""
        return f"http://{self.host}:{self.http_port}"

    def client(self, **options: Any) -> Client:
        """Returns a client of the first model; `options` as for `Client`."""
        return Client(self.url, **{"model": self._names[0], "token": self._token} | options)

    def stop(self) -> None:
        """Answers the requests in flight and ends; does nothing when called again."""
        if not self._thread.is_alive():
            return
        if self._server is not None:
            self._run(self._server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __enter__(self) -> "BackgroundServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<rmjax server of {', '.join(self._names)}: HTTP {self.url}, gRPC {self.host}:{self.grpc_port}>"
