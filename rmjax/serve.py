"""Serves reward models over gRPC and HTTP (Open Inference Protocol v2, and what RL frameworks speak).

    python -m rmjax.serve --model=PATH --grpc_port=8001 --http_port=8000
    python -m rmjax.serve --model=helpful=PATH,harmless=PATH --grpc_port=0 --http_port=0

Prints `gRPC on HOST:PORT` and `HTTP on HOST:PORT` once it is warm. It listens on the loopback interface, for anybody on
this machine, unless --host says otherwise; --token_file and the --tls flags say who may ask. SIGTERM drains.
"""

import asyncio
import functools
import importlib.util
import pathlib
from collections.abc import Sequence

import jax
from absl import flags

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh, row_shards
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.models.loading import load_model
from rmjax.serving import app
from rmjax.serving.engine.offload import Memory
from rmjax.serving.engine.queue import Engine
from rmjax.serving.metrics import ModelMetrics
from rmjax.serving.registry import ModelRegistry
from rmjax.serving.security import Security
from rmjax.serving.services.critic import critic_loaders
from rmjax.serving.services.critic_state import Critic
from rmjax.serving.services.inputs import InputReader
from rmjax.serving.services.reward import RewardService

_DEFAULT_NAME = "reward_model"
_MODEL = flags.DEFINE_list(
    "model", [], "Artifact, Hugging Face directory with a head, or workdir; several as NAME=PATH,NAME2=PATH."
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "The address to listen on; 0.0.0.0 for all interfaces.")
_PORT = flags.DEFINE_integer("grpc_port", 8001, "The port; 0: any free one, printed.", lower_bound=0, upper_bound=65535)
_HTTP = flags.DEFINE_integer("http_port", 8000, "The same for HTTP.", lower_bound=0, upper_bound=65535)
_MAX_LENGTH = flags.DEFINE_integer("max_length", 0, "Longest sequence in tokens, longer are refused; 0: the model's.")
_TRUNCATE = flags.DEFINE_bool("truncate", False, "Cut longer ones instead; the output `exceeded` says which.")
_QUEUE = flags.DEFINE_integer("queue", 4096, "Sequences that may wait; more are refused.", lower_bound=1)
_QUEUE_TOKENS = flags.DEFINE_integer("queue_tokens", 1 << 22, "Tokens that may wait; more are refused.", lower_bound=1)
_ROWS = flags.DEFINE_integer("rows_per_device", 0, "Rows of a batch on each device; 0: by the kind of device.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of activations.")
_TOKEN = flags.DEFINE_string("token_file", "", "File with the bearer token that clients must send; empty: none.")
_CRITIC = flags.DEFINE_string("critic", "", "Reward model that PPO's critic begins as; empty: no critic.")
_CRITIC_DIR = flags.DEFINE_string("critic_dir", "", "Where the critic's checkpoints lie; it continues from the latest.")
_CRITIC_RATE = flags.DEFINE_float("critic_learning_rate", 9e-6, "Of the critic.", lower_bound=0.0)
_COMBINE = flags.DEFINE_bool("combine_rm_and_critic", False, "critic_infer answers the reward model's rewards too.")
_OFFLOAD = flags.DEFINE_bool(
    "offload", False, "One model works at a time; what the others have lies in host memory meanwhile."
)
_CERTIFICATE = flags.DEFINE_string("tls_cert", "", "PEM file of the server's certificate chain; empty: no TLS.")
_KEY = flags.DEFINE_string("tls_key", "", "PEM file of its key.")
_CLIENT_CA = flags.DEFINE_string("tls_client_ca", "", "PEM file of the authority whose certificates clients must show.")


def _load(path: str, memory: Memory, metrics: ModelMetrics) -> RewardService:
    with memory.using():  # room for it
        pipeline = load_pipeline(path, max_length=_MAX_LENGTH.value, rows_per_device=_ROWS.value, dtype=_DTYPE.value)
        scorer = pipeline.scorer
        on_device = memory.using(memory.hold(scorer, "params", metrics))
    engine = Engine(
        on_device(scorer.score),
        on_device(scorer.warm_up),
        max_length=pipeline.max_length,
        batch_tokens=scorer.rows * scorer.row_length,
        queue_size=_QUEUE.value,
        queue_tokens=_QUEUE_TOKENS.value,
        metrics=metrics,
    )
    return RewardService(
        engine,
        pipeline.tokenizer,
        vocab_size=scorer.model.decoder.vocab_size,
        attributes=pipeline.attributes,
        strings=pipeline.options.strings,
        truncate=_TRUNCATE.value,
        metadata=pipeline.metadata,
    )


def _load_critic(memory: Memory, metrics: ModelMetrics) -> tuple[Critic, InputReader]:
    mesh = make_mesh((-1, 1, 1, 1))
    with memory.using():  # room for it
        with jax.set_mesh(mesh):
            loaded = load_model(_CRITIC.value, mesh=mesh, dtype=_DTYPE.value)
        length, decoder = _MAX_LENGTH.value or loaded.max_length, loaded.model.decoder
        if not 0 < length <= decoder.max_positions:
            raise InputError(f"--max_length={length}; --critic was made for 1 to {decoder.max_positions}")
        critic = Critic(
            loaded.model,
            loaded.params,
            mesh,
            row_length=length,
            rows=max(_ROWS.value, 1) * row_shards(mesh),
            learning_rate=_CRITIC_RATE.value,
            directory=pathlib.Path(_CRITIC_DIR.value),
            memory=memory,
            metrics=metrics,
        )
    reader = InputReader(Tokenizer.load(str(loaded.directory)), decoder.vocab_size, length, _TRUNCATE.value)
    return critic, reader


def _paths(given: Sequence[str]) -> dict[str, str]:
    """Returns {name: path}; one path alone is `reward_model`."""
    if not given and not _CRITIC.value:
        raise InputError("--model is missing; give an artifact, a Hugging Face directory or a workdir")
    if len(given) == 1 and "=" not in given[0]:
        return {_DEFAULT_NAME: given[0]}
    pairs = [item.split("=", 1) for item in given]
    names = [pair[0] for pair in pairs]
    if any(len(pair) < 2 or not all(pair) for pair in pairs) or len(set(names)) < len(names):
        raise InputError(
            f"--model={','.join(given)}; expected NAME=PATH for each of several models, with different names"
        )
    return dict(pairs)


def main(_: Sequence[str]) -> None:
    """Serves as the flags say."""
    paths = _paths(_MODEL.value)
    if _CRITIC.value and not _CRITIC_DIR.value:
        raise InputError("--critic needs --critic_dir, where its checkpoints lie")
    if _COMBINE.value and not (paths and _CRITIC.value):
        raise InputError("--combine_rm_and_critic needs both --model and --critic")
    program.enable_compilation_cache()
    security = Security.read(_TOKEN.value, _CERTIFICATE.value, _KEY.value, _CLIENT_CA.value)

    async def serve() -> None:
        memory = Memory(_OFFLOAD.value)
        loaders = {name: functools.partial(_load, path, memory) for name, path in paths.items()}
        if _CRITIC.value:
            rewarding = (lambda: registry.use(next(iter(paths)))) if _COMBINE.value else None
            loaders |= critic_loaders(functools.partial(_load_critic, memory), rewarding)
        registry = ModelRegistry(loaders, paths)
        await app.serve(registry, _HOST.value, _PORT.value, _HTTP.value, security)

    factory = None
    if importlib.util.find_spec("uvloop"):  # a faster loop than asyncio's; there is none for Windows
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve())


if __name__ == "__main__":
    program.use_huge_pages()
    program.run(main)
