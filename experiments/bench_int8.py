"""Benchmark of a frozen base in float32, bfloat16 and int8: memory, error and time of LoRA and of scoring.

    python ../shared/tools/smollm2.py DIR
    python experiments/bench_int8.py --model=DIR --data=../shared/data/vader_pairs/train.jsonl

For each dtype of the frozen parameters, with activations in float32 (or --dtype): the bytes of these parameters; the
temporary memory of the compiled gradient of LoRA (rank 16) and the head, on a row of 1,024 tokens of comparisons, and
its median time; the relative error of the hidden states at the readouts beside the float32 model's, and the largest
angle between them. Nothing is trained.
"""

import argparse
import dataclasses
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.core import config as configs
from rmjax.core import pytree
from rmjax.core.mesh import make_mesh
from rmjax.data.packing.rows import fill_rows, pack
from rmjax.data.schema import packed_spec
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import loading, lora, partition
from rmjax.models.decoder import RewardModel
from rmjax.models.lora import LoraConfig

ROW_LENGTH = 1024  # tokens


def make_batch(model: str, data: str) -> dict[str, jax.Array]:
    """Returns one packed row of comparisons."""
    config = configs.fine_tuning()
    config.data.train_limit = 32
    options = DatasetOptions.from_config(config.data, "train")
    dataset, _ = load_dataset(data, Tokenizer.load(model), options, split="train", progress=False)
    row = pack(dataset.lengths, ROW_LENGTH)[0]
    spec = packed_spec(1, ROW_LENGTH, 2 * len(row), len(row), 0)
    return jax.tree.map(jnp.asarray, fill_rows([[dataset.tree(i) for i in row]], spec))


def measure(name: str, model: RewardModel, params: dict, batch: dict[str, jax.Array], expected: np.ndarray | None):
    """Prints the memory, time and error of a model; returns its hidden states at the readouts."""
    trained, frozen = partition.store(params, rf"^head/|{lora.PATTERN}", model)

    def loss(trained: dict, frozen: dict) -> jax.Array:
        rewards = model.rewards(pytree.merge(trained, frozen), batch)[..., 0]
        return -jnp.mean(jax.nn.log_sigmoid(rewards[:, ::2] - rewards[:, 1::2]))

    program = jax.jit(jax.value_and_grad(loss)).lower(trained, frozen).compile()
    times = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(program(trained, frozen))
        times.append(time.perf_counter() - start)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(frozen))
    temporary = program.memory_analysis().temp_size_in_bytes
    used = np.asarray(batch["readout_group"])[0] > 0
    features = np.asarray(jax.jit(model.features)(pytree.merge(trained, frozen), batch), np.float32)[0][used]
    error = ""
    if expected is not None:
        relative = np.linalg.norm(features - expected) / np.linalg.norm(expected)
        cosine = np.sum(features * expected, -1) / np.linalg.norm(features, axis=-1) / np.linalg.norm(expected, axis=-1)
        error = (
            f", error of hidden states {relative:.2%}, largest angle {np.degrees(np.arccos(cosine.min())):.1f} degrees"
        )
    print(
        f"{name:9s} frozen parameters {size / 1e6:6.1f} MB, temporary {temporary / 1e6:6.1f} MB, gradient "
        f"{np.median(times[1:]) * 1e3:5.0f} ms{error}",
        flush=True,
    )
    return features


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of the model")
    parser.add_argument("--data", required=True, help="file of pairs")
    parser.add_argument("--dtype", default="float32", help="data type of activations")
    options = parser.parse_args()
    config = configs.fine_tuning()
    config.model.path, config.model.dtype = str(pathlib.Path(options.model)), options.dtype
    batch = make_batch(options.model, options.data)
    model = dataclasses.replace(loading.make_model(config.model, 0), lora=LoraConfig(rank=16, alpha=32.0))
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        params = loading.initial_params(config.model, model, mesh, jax.random.key(0))
        params["head"] = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape), params["head"])
        expected = None
        for name, choice in (
            ("float32", {}),
            ("bfloat16", {"param_dtype": "bfloat16"}),
            ("int8", {"param_dtype": "bfloat16", "frozen_dtype": "int8"}),
        ):
            features = measure(name, dataclasses.replace(model, **choice), params, batch, expected)
            expected = features if expected is None else expected


if __name__ == "__main__":
    main()
