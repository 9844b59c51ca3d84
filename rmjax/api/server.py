"""The scoring server in a thread of this process."""

from collections.abc import Mapping
from typing import Any

from rmjax.api.model import Model, open_model
from rmjax.api.runs import Run
from rmjax.serving.app import BackgroundServer, make_reward_service
from rmjax.serving.engine.offload import DeviceMemory


def serve(
    model: Model | Run | str | Mapping[str, Any],
    *,
    host: str = "127.0.0.1",
    grpc_port: int = 0,
    http_port: int = 0,
    truncate: bool = False,
    **options: Any,
) -> BackgroundServer:
    """Starts a scoring server in a thread of this process; a context manager that drains it on exit.

        with rmjax.serve(model) as server:
            rewards = server.client().rewards(["a", "b"])

    Args:
      model: a loaded model or what `rmjax.load` takes; or several as {name: model}.
      host, grpc_port, http_port: where to listen; port 0 takes a free port, see `server.url` and `server.grpc_port`.
      truncate: truncate sequences that are too long, instead of rejecting them.
      options: of `rmjax.load` (`mesh`, `dtype`, …), for models that are not loaded.

    Raises:
      InputError: a port cannot be bound, or a model cannot be loaded.
    """
    models = model if isinstance(model, Mapping) else {"reward_model": model}
    memory = DeviceMemory()
    loaded = {name: open_model(entry, options) for name, entry in models.items()}
    loaders = {
        name: lambda metrics, entry=entry: make_reward_service(entry.pipeline, metrics, memory, truncate=truncate)
        for name, entry in loaded.items()
    }
    return BackgroundServer(loaders, host=host, grpc_port=grpc_port, http_port=http_port)
