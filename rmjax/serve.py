"""Serves reward models over gRPC and HTTP (Open Inference Protocol v2 and the protocols of RL frameworks).

    python -m rmjax.serve --model=PATH --grpc_port=8001 --http_port=8000
    python -m rmjax.serve --model=helpful=PATH,harmless=PATH --grpc_port=0 --http_port=0
    python -m rmjax.serve --model=A,B,C --combination=mean_std --beta=1        # an ensemble of three models

Prints `gRPC on HOST:PORT` and `HTTP on HOST:PORT` when the models are compiled. By default it listens on the loopback
interface without authentication: set --token_file and the --tls flags before --host. SIGTERM exits when the accepted
requests are finished.
"""

import asyncio
import contextlib
import functools
import pathlib
from collections.abc import Sequence

import jax

from rmjax._model_flags import ModelFlags
from rmjax.core import locks, option_names, program
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh, parse_sizes, row_shards
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.evaluation.ensemble import load_models
from rmjax.models.loading import load_model
from rmjax.serving import app
from rmjax.serving.engine.offload import DeviceMemory
from rmjax.serving.metrics import ModelMetrics
from rmjax.serving.registry import Load, ModelRegistry
from rmjax.serving.security import Security
from rmjax.serving.services.critic import critic_loaders
from rmjax.serving.services.critic_state import Critic
from rmjax.serving.services.inputs import InputReader
from rmjax.serving.services.reward import RewardService

FLAGS = program.Flags()
_MODEL = FLAGS.list(
    "model",
    [],
    "Artifact, Hugging Face directory or workdir; several: NAME=PATH,NAME2=PATH; an ensemble: A,B,C or NAME=A,B,C.",
)
_HOST = FLAGS.string("host", "127.0.0.1", "Address to listen on; 0.0.0.0: all interfaces.")
_PORT = FLAGS.integer("grpc_port", 8001, "gRPC port; 0: any free port.", lower_bound=0, upper_bound=65535)
_HTTP = FLAGS.integer("http_port", 8000, "HTTP port; 0: any free port.", lower_bound=0, upper_bound=65535)
_LOADING = ModelFlags(FLAGS, "Maximum tokens per sequence, longer: rejected; 0: the model's.")
_TRUNCATE = FLAGS.bool("truncate", False, "Truncate longer sequences instead; see the output `exceeded`.")
_QUEUE = FLAGS.integer("queue", 4096, "Maximum number of queued sequences.", lower_bound=1)
_QUEUE_TOKENS = FLAGS.integer("queue_tokens", 1 << 22, "Maximum number of queued tokens.", lower_bound=1)
_DETERMINISTIC = FLAGS.bool(
    "deterministic", False, "Bit for bit equal rewards whatever else is asked; slower: one conversation per row."
)
_TOKEN = FLAGS.string("token_file", "", "File with the bearer token of clients; empty: no authentication.")
_CRITIC = FLAGS.string("critic", "", "Reward model that initializes the PPO critic; empty: no critic.")
_CRITIC_DIR = FLAGS.string("critic_dir", "", "Directory of the critic's checkpoints; resumed from the latest.")
_CRITIC_RATE = FLAGS.float("critic_learning_rate", 9e-6, "Learning rate of the critic.", lower_bound=0.0)
_COMBINE = FLAGS.bool("combine_rm_and_critic", False, "critic_infer also returns the reward model's rewards.")
_OFFLOAD = FLAGS.bool("offload", False, "Run one model at a time; offload the others to host memory.")
_CERTIFICATE = FLAGS.string("tls_cert", "", "PEM file of the server's TLS certificate chain; empty: no TLS.")
_KEY = FLAGS.string("tls_key", "", "PEM file of the TLS private key.")
_CLIENT_CA = FLAGS.string("tls_client_ca", "", "PEM file of the client CA (mutual TLS); empty: off.")
_HOSTS = FLAGS.list("allowed_hosts", [], "Host names of HTTP requests besides --host and the loopback names.")


def _load(path: str, memory: DeviceMemory, metrics: ModelMetrics) -> RewardService:
    with memory.resident():  # offloads the other models
        pipeline = load_models(path, deterministic=_DETERMINISTIC.value, **_LOADING.options())
    return app.make_reward_service(
        pipeline, metrics, memory, queue_size=_QUEUE.value, queue_tokens=_QUEUE_TOKENS.value, truncate=_TRUNCATE.value
    )


def _load_critic(memory: DeviceMemory, metrics: ModelMetrics) -> tuple[Critic, InputReader]:
    mesh, longest = make_mesh(parse_sizes(_LOADING.mesh.value), name="--mesh"), _LOADING.max_length.value
    with memory.resident():  # offloads the other models
        with jax.set_mesh(mesh):
            options = {"mesh": mesh, "dtype": _LOADING.dtype.value, "max_length": longest}
            loaded = load_model(_CRITIC.value, **options, trained=True, progress=True, option=option_names.flag)
        length, decoder = longest or loaded.max_length, loaded.model.decoder
        if not 0 < length <= decoder.max_positions:
            raise InputError(f"--max_length={length}; expected 1 to {decoder.max_positions}, the positions of --critic")
        critic = Critic(
            loaded.model,
            loaded.params,
            mesh,
            row_length=length,
            rows=max(_LOADING.rows_per_device.value, 1) * row_shards(mesh),
            learning_rate=_CRITIC_RATE.value,
            directory=pathlib.Path(_CRITIC_DIR.value),
            memory=memory,
            metrics=metrics,
        )
    tokenizer = Tokenizer.load(
        str(loaded.directory), _LOADING.template_date.value or loaded.metadata.get("template_date") or ""
    )
    reader = InputReader(tokenizer, decoder.vocab_size, length, _TRUNCATE.value, metrics)
    return critic, reader


def _paths(given: Sequence[str]) -> dict[str, str]:
    """Returns {name: path}; a path without a name is served as `reward_model`, and one after another is an ensemble's.

    >>> _paths(["helpful=a", "b", "harmless=c"])
    {'helpful': 'a,b', 'harmless': 'c'}
    """
    if not given and not _CRITIC.value:
        raise InputError("--model is missing; set an artifact, a Hugging Face directory or a workdir")
    found: dict[str, str] = {}
    last = "reward_model"
    for item in given:
        name, equals, path = item.partition("=")
        if named := bool(equals) and "/" not in name:  # runs/rate=1 is a path
            last = name
        path = path if named else item
        if not last or not path or (named and last in found):
            raise InputError(
                f"--model={','.join(given)}; expected NAME=PATH for each model, with different names, or NAME=A,B,C "
                "for an ensemble"
            )
        found[last] = f"{found[last]},{path}" if last in found else path
    return found


def main(_: Sequence[str]) -> None:
    """Serves --model and --critic."""
    paths = _paths(_MODEL.value)
    if _CRITIC.value and not _CRITIC_DIR.value:
        raise InputError("--critic needs --critic_dir, the directory of its checkpoints")
    if _COMBINE.value and not (paths and _CRITIC.value):
        raise InputError("--combine_rm_and_critic needs both --model and --critic")
    program.enable_compilation_cache()
    security = Security.read(_TOKEN.value, _CERTIFICATE.value, _KEY.value, _CLIENT_CA.value, _HOSTS.value)

    async def serve() -> None:
        memory = DeviceMemory(_OFFLOAD.value)
        registry: ModelRegistry
        loaders: dict[str, Load] = {name: functools.partial(_load, path, memory) for name, path in paths.items()}
        if _CRITIC.value:
            rewarding = (lambda: registry.acquire(next(iter(paths)))) if _COMBINE.value else None
            loaders |= critic_loaders(functools.partial(_load_critic, memory), rewarding)
        registry = ModelRegistry(loaders, paths)
        await app.serve(registry, _HOST.value, _PORT.value, _HTTP.value, security)

    with contextlib.ExitStack() as stack:
        if _CRITIC.value:
            stack.enter_context(locks.hold(pathlib.Path(_CRITIC_DIR.value), "--critic_dir", directory=True))
        runner = stack.enter_context(asyncio.Runner(loop_factory=app.event_loop_factory()))
        runner.run(serve())


if __name__ == "__main__":
    program.use_huge_pages()
    program.run(main, FLAGS, options={"data.template_date": "--template_date"})
