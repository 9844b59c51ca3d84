"""The models that a server has: by name, loaded at start, replaced while they serve."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rmjax.core.errors import InputError
from rmjax.serving.errors import NotFound, RequestError
from rmjax.serving.in_flight import Progress
from rmjax.serving.metrics import Metrics, ModelMetrics
from rmjax.serving.protocol import VERSION, Arrays, Call, Model

Load = Callable[[ModelMetrics], Model]


class _Served:
    """A loaded model, and how many calls use it."""

    def __init__(self, service: Model):
        self.service, self.calls = service, Progress()

    async def close(self) -> None:
        """Answers all calls that have begun, then ends."""
        await self.calls.idle.wait()
        await self.service.close()


class ModelRegistry:
    """Models by name.

    Args:
      loaders: {name: what loads the model}; a loader blocks, and may be called again for a newer state of its source.
      paths: {name: where it comes from}; vLLM's clients know a model by its path.

    Raises:
      InputError: a model cannot be loaded.
    """

    def __init__(self, loaders: Mapping[str, Load], paths: Mapping[str, str] | None = None):
        self.metrics, self._loaders = Metrics(), dict(loaders)
        self._names = {path: name for name, path in (paths or {}).items()}
        self._served = {name: _Served(load(ModelMetrics(self.metrics, name))) for name, load in self._loaders.items()}
        self._lock, self._closing = asyncio.Lock(), set[asyncio.Task]()
        self._loading: dict[str, asyncio.Task] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names; the first is meant where a request names none."""
        return tuple(self._loaders)

    @property
    def ready(self) -> bool:
        """Whether every model scores."""
        return all(served.service.ready for served in self._served.values())

    def service(self, name: str, version: str = "") -> Model:
        """Returns a model, known by its name or by its path.

        Raises:
          NotFound: there is none, or not in this version.
        """
        return self._find(name, version).service

    def _find(self, name: str, version: str = "") -> _Served:
        served = self._served.get(name) or self._served.get(self._names.get(name, ""))
        if served is None:
            raise NotFound(f"unknown model {name!r:.80}; this server has {', '.join(self.names)}")
        if version not in ("", VERSION):
            raise NotFound(f"model {name!r} has no version {version!r:.40}; leave it empty, or give {VERSION}")
        return served

    @contextlib.contextmanager
    def use(self, name: str, version: str = "", *, counted: bool = True) -> Iterator[Model]:
        """Holds a model while one request is answered with it, and counts the request.

        A model that is replaced meanwhile is closed only afterwards, so no request is lost to a reload.

        Raises:
          NotFound: as `service`.
        """
        served = self._find(name, version)
        with served.calls.one(), served.service.metrics.request() if counted else contextlib.nullcontext():
            yield served.service

    async def infer(self, name: str, version: str, tensors: Arrays, call: Call) -> Arrays:
        """Returns a model's outputs to a request's inputs.

        Raises:
          ServingError: the request was not answered.
        """
        with self.use(name, version) as service:
            return await service.infer(tensors, call)

    def index(self, only_ready: bool = False) -> list[dict[str, Any]]:
        """Returns the models and their states, as the protocol has it."""
        states = {name: served.service.ready for name, served in self._served.items()}
        return [
            {"name": name, "version": VERSION, "state": "READY" if ready else "UNAVAILABLE", "reason": ""}
            for name, ready in states.items()
            if ready or not only_ready
        ]

    async def start(self) -> None:
        """Warms every model up, one after the other."""
        for served in self._served.values():
            await served.service.start()

    async def load(self, name: str) -> None:
        """Loads a model anew from where it came from; the old one serves until the new one is warm.

        It goes on though the caller gives up; who asks again meanwhile waits for the same load. With offload the new
        one takes its turn to be loaded and warmed up, and requests wait meanwhile.

        Raises:
          NotFound: there is no such model.
          RequestError: what is there now cannot be loaded; the old one goes on.
        """
        self._find(name)
        name = self._names.get(name, name)
        if (loading := self._loading.get(name)) is None:
            loading = self._loading[name] = asyncio.create_task(self._load(name))
            loading.add_done_callback(lambda _: self._loading.pop(name))
        await asyncio.shield(loading)

    async def _load(self, name: str) -> None:
        async with self._lock:  # two models in memory are enough
            metrics = ModelMetrics(self.metrics, name)
            try:
                new = _Served(await asyncio.to_thread(self._loaders[name], metrics))
            except InputError as error:
                raise RequestError(f"model {name!r} was not loaded, the old one goes on: {error}") from error
            await new.service.start()
            old, self._served[name] = self._served[name], new
        closing = asyncio.create_task(old.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Answers all calls that have begun, then ends every model."""
        async with self._lock:  # a load under way ends first
            await asyncio.gather(*self._closing, *(served.close() for served in self._served.values()))
