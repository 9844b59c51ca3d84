"""Serves a reward model over gRPC (Open Inference Protocol v2).

    python -m rmjax.serve --model=PATH --grpc_port=8001

Prints `gRPC on HOST:PORT` once it is warm. It has no authentication: it listens on the loopback interface unless --host
says otherwise. SIGTERM drains.
"""

import asyncio
from collections.abc import Sequence

from absl import flags

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.evaluation.offline import open_judge
from rmjax.serving import grpc_server
from rmjax.serving.engine import Engine
from rmjax.serving.reward_model import RewardService

_MODEL = flags.DEFINE_string("model", "", "Artifact, Hugging Face directory with a head, or workdir.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "The address to listen on; 0.0.0.0 for all interfaces.")
_PORT = flags.DEFINE_integer("grpc_port", 8001, "The port; 0: any free one, printed.", lower_bound=0, upper_bound=65535)
_MAX_LENGTH = flags.DEFINE_integer("max_length", 0, "Longest sequence in tokens, longer are refused; 0: the model's.")
_QUEUE = flags.DEFINE_integer("queue", 4096, "Sequences that may wait; more are refused.", lower_bound=1)
_ROWS = flags.DEFINE_integer("rows_per_device", 0, "Rows of a batch on each device; 0: by the kind of device.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of activations.")


def main(_: Sequence[str]) -> None:
    """Serves as the flags say."""
    if not _MODEL.value:
        raise InputError("--model is missing; give an artifact, a Hugging Face directory or a workdir")
    judge = open_judge(
        _MODEL.value, max_length=_MAX_LENGTH.value, rows_per_device=_ROWS.value, dtype=_DTYPE.value
    )  # fmt: skip
    scorer = judge.scorer

    def make_service() -> RewardService:
        engine = Engine(
            scorer.score, scorer.warm_up, max_length=judge.max_length,
            batch_tokens=scorer.rows * scorer.row_length, queue_size=_QUEUE.value,
        )  # fmt: skip
        vocab_size = scorer.model.decoder.vocab_size
        return RewardService(engine, judge.tokenizer.encode, vocab_size=vocab_size, attributes=judge.attributes)

    asyncio.run(grpc_server.serve(make_service, _HOST.value, _PORT.value))


if __name__ == "__main__":
    program.use_huge_pages()
    program.run(main)
