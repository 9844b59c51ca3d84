"""The models of a server: by name, loaded at start, replaced without downtime."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rmjax.core.errors import InputError
from rmjax.serving.errors import NotFound, RequestError
from rmjax.serving.in_flight import InFlight
from rmjax.serving.metrics import Metrics, ModelMetrics
from rmjax.serving.protocol import VERSION, Model

Load = Callable[[ModelMetrics], Model]


class _LoadedModel:
    """A model and its requests in flight."""

    def __init__(self, model: Model):
        self.model, self.requests = model, InFlight()

    async def close(self) -> None:
        """Closes the model after its last request."""
        await self.requests.idle.wait()
        await self.model.close()


class ModelRegistry:
    """Models by name.

    Args:
      loaders: {name: function that loads the model}; it blocks, and is called again to load a newer state.
      paths: {name: path of the model}, since vLLM's clients name a model by its path.

    Raises:
      InputError: a model cannot be loaded.
    """

    def __init__(self, loaders: Mapping[str, Load], paths: Mapping[str, str] | None = None):
        self.metrics, self._loaders = Metrics(), dict(loaders)
        self._names = {path: name for name, path in (paths or {}).items()}
        self._models = {
            name: _LoadedModel(load(ModelMetrics(self.metrics, name))) for name, load in self._loaders.items()
        }
        self._lock, self._closing = asyncio.Lock(), set[asyncio.Task]()
        self._loading: dict[str, asyncio.Task] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names; the first is the default of requests that name none."""
        return tuple(self._loaders)

    @property
    def ready(self) -> bool:
        """Whether all models are ready."""
        return all(loaded.model.ready for loaded in self._models.values())

    def get(self, name: str, version: str = "") -> Model:
        """Returns a model by its name or path.

        Raises:
          NotFound: the model or the version does not exist.
        """
        return self._find(name, version).model

    def _find(self, name: str, version: str = "") -> _LoadedModel:
        loaded = self._models.get(name) or self._models.get(self._names.get(name, ""))
        if loaded is None:
            raise NotFound(f"unknown model {name!r:.80}; this server has {', '.join(self.names)}")
        if version not in ("", VERSION):
            raise NotFound(f"model {name!r:.80} has no version {version!r:.40}; expected {VERSION}, or none")
        return loaded

    @contextlib.contextmanager
    def acquire(self, name: str, version: str = "", *, counted: bool = True) -> Iterator[Model]:
        """Yields a model for one request, and counts the request in the model's metrics.

        A model that is replaced meanwhile is closed only after the request, so a reload loses no request.

        Raises:
          NotFound: the model or the version does not exist.
        """
        loaded, began, failure = self._find(name, version), time.monotonic(), None
        with loaded.requests:
            try:
                yield loaded.model
            except BaseException as error:  # includes cancellation
                failure = error
                raise
            finally:
                if counted:
                    loaded.model.metrics.count_request(began, failure)

    def index(self, only_ready: bool = False) -> list[dict[str, Any]]:
        """Returns the models and their states as the protocol's JSON."""
        return [
            {"name": name, "version": VERSION, "state": "READY" if loaded.model.ready else "UNAVAILABLE", "reason": ""}
            for name, loaded in self._models.items()
            if loaded.model.ready or not only_ready
        ]

    async def start(self) -> None:
        """Warms up every model, one after the other."""
        for loaded in self._models.values():
            await loaded.model.start()

    async def load(self, name: str) -> None:
        """Reloads a model from its source; the old one serves until the new one is warm.

        If the caller is cancelled, the load continues; a second call waits for the same load. With offload, requests
        wait until the new model is warm.

        Raises:
          NotFound: the model does not exist.
          RequestError: the source cannot be loaded; the old model continues to serve.
        """
        self._find(name)
        name = self._names.get(name, name)
        if (loading := self._loading.get(name)) is None:
            loading = self._loading[name] = asyncio.create_task(self._load(name))
            loading.add_done_callback(lambda _: self._loading.pop(name))
        await asyncio.shield(loading)

    async def _load(self, name: str) -> None:
        async with self._lock:  # at most one model more than usual is in memory
            metrics = ModelMetrics(self.metrics, name)
            try:
                new = _LoadedModel(await asyncio.to_thread(self._loaders[name], metrics))
            except InputError as error:
                raise RequestError(f"model {name!r} was not loaded, the old one continues to serve: {error}") from error
            await new.model.start()
            old, self._models[name] = self._models[name], new
        closing = asyncio.create_task(old.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Closes every model after its last request."""
        async with self._lock:  # a load in progress ends first
            await asyncio.gather(*self._closing, *(loaded.close() for loaded in self._models.values()))
