"""Benchmark of the train step of model families at one size, and of the rematerialization policies.

    python experiments/bench_families.py
    python experiments/bench_families.py --families=llama --remat=none,small,layer

Random models of about 100M parameters (12 layers, 768 wide, 12 query and 4 key/value heads; windows as transformers
has them by default), all weights trained, one row of packed comparisons a step. All combinations of families and
policies are in one process and take a step in turn; ratios to the first combination are medians over the rounds.
Arithmetic is that of the matrix products and attention scores of a step, without recomputation; "time by arithmetic" is
the ratio of times over the ratio of arithmetic. Memory is the compiled step's for temporary arrays (gradients and
activations), without parameters and moments.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
import transformers

from rmjax.core import config as configs
from rmjax.core import program
from rmjax.core.mesh import make_mesh
from rmjax.data.packing.rows import fill_rows
from rmjax.data.schema import Edge, packed_spec
from rmjax.data.tokens.trees import make_tree
from rmjax.models.decoder import RewardModel
from rmjax.training.compilation import make_trainer

FAMILIES = "llama,qwen3,qwen2,mistral,gemma2,gemma3_text"
SIZES = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}


def make_batch(row_length: int) -> dict[str, np.ndarray]:
    """Returns one row of comparisons of 256 unique tokens, as the one microbatch of a step."""
    random, count = np.random.default_rng(0), row_length // 256
    trees = []
    for _ in range(count):
        prompt, *responses = (random.integers(0, SIZES["vocab_size"], size).tolist() for size in (96, 80, 80))
        trees.append(make_tree([prompt + response for response in responses], [Edge(0, 1, 1.0)]))
    spec = packed_spec(1, row_length, 2 * count, count, 1)
    return {name: value[None] for name, value in fill_rows([trees], spec).items()}


class Side:
    """A family with a rematerialization policy: its compiled step and its times in seconds."""

    def __init__(self, family: str, remat: str, flags: argparse.Namespace, batch: dict[str, np.ndarray]):
        self.name, self.seconds = f"{family}, {remat}", []
        known = transformers.AutoConfig.for_model(family).to_dict()
        sizes = {name: size for name, size in SIZES.items() if name in known}
        values = transformers.AutoConfig.for_model(family, **sizes).to_dict()
        config, mesh = configs.fine_tuning(), make_mesh(devices=jax.devices()[:1])
        with tempfile.TemporaryDirectory() as directory:
            (pathlib.Path(directory) / "config.json").write_text(json.dumps(values))
            config.model.path, config.model.dtype, config.model.remat = directory, flags.dtype, remat
            config.data.max_length = flags.row_length
            jax.set_mesh(mesh)
            trainer = make_trainer(config, mesh, SIZES["vocab_size"])
        assert isinstance(trainer.model, RewardModel)
        self._batch = batch
        self._state = jax.jit(lambda key: trainer.init(trainer.model.init(key)))(jax.random.key(0))
        self._counts = np.ones(2, np.int32)
        self._step = trainer.compile_step(0).lower(self._state, batch, self._counts).compile()
        self.memory = self._step.memory_analysis().temp_size_in_bytes
        decoder = self._state["params"]["decoder"]
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(decoder))
        matrices = sum(leaf.size for leaf in jax.tree.leaves(decoder["layers"]) if leaf.ndim > 2)
        self.flops = 6 * matrices * flags.row_length + 12 * SIZES["num_hidden_layers"] * SIZES["hidden_size"] * (
            (flags.row_length // 256) * (256**2 / 2)
        )

    def run(self) -> None:
        """Takes a step."""
        start = time.perf_counter()
        self._state, _ = jax.block_until_ready(self._step(self._state, self._batch, self._counts))
        self.seconds.append(time.perf_counter() - start)


def main() -> None:
    """Runs the benchmark and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=FAMILIES)
    parser.add_argument("--remat", default="small", help="policies, separated by commas: none, small, layer")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--row_length", type=int, default=1024, help="tokens; a multiple of 256")
    parser.add_argument("--rounds", type=int, default=7)
    flags = parser.parse_args()
    batch = make_batch(flags.row_length)
    pairs = itertools.product(flags.families.split(","), flags.remat.split(","))
    sides = [Side(family, remat, flags, batch) for family, remat in pairs]
    for _ in range(flags.rounds + 1):  # the first is a warm-up
        for side in sides:
            side.run()
    first = sides[0]
    print(f"{flags.row_length} tokens a step, {flags.dtype}, {os.cpu_count()} cores")
    print("family, remat | M parameters | GFLOP | temporary memory, GiB | s | time | time by arithmetic")
    for side in sides:
        ratio = statistics.median(own / one for own, one in zip(side.seconds[1:], first.seconds[1:], strict=True))
        print(
            f"{side.name} | {side.parameters / 1e6:.0f} | {side.flops / 1e9:.0f} | {side.memory / 2**30:.2f} | "
            f"{statistics.median(side.seconds[1:]):.2f} | {ratio:.2f} | {ratio * first.flops / side.flops:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    program.use_huge_pages()
    main()
