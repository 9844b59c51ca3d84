"""Checks that sharing prompts changes nothing: a whole training with shared and with repeated prompts.

    python experiments/check_sharing.py [--model=DIR --data=FILE --steps=75 --every=5]

Two runs from the same parameters take the same comparisons in the same order. One computes the prompt of a comparison
once (a prefix tree), the other once for each response, as trainers that pad do. Every --every steps the gradients of
both are computed at the same parameters, those of the first run.

Prints the greatest difference of the losses, relative, the smallest cosine of the gradients and the greatest relative
difference of them, the relative distance of the final parameters to each other beside the distance that training moved
them, and the time of a step of both, in turn. Without --model: a random model of 128 dimensions on the built-in data.
"""

import argparse
import dataclasses
import os
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmjax.core import config as configs
from rmjax.core.mesh import AXES, make_mesh
from rmjax.data.packing.pipeline import materialize
from rmjax.data.packing.plan import choose_row_length, short_row_length, training_plan
from rmjax.data.schema import Tree
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import loading
from rmjax.training.compilation import make_trainer
from rmjax.training.step import Trainer, shard_batch

Arrays = dict[str, Any]


class RepeatedPrompts:
    """A dataset whose comparisons repeat the prompt in every branch."""

    def __init__(self, dataset: TokenizedDataset):
        self._dataset, self.attributes = dataset, dataset.attributes
        self.lengths = np.array([self.tree(i).length for i in range(len(dataset))])
        self.readout_counts, self.edge_counts = dataset.readout_counts, dataset.edge_counts

    def tree(self, i: int) -> Tree:
        """Returns comparison i."""
        tree = self._dataset.tree(i)
        branches = tuple(np.concatenate([tree.prefix, branch]) for branch in tree.branches)
        readouts = tuple((k, j + len(tree.prefix)) for k, j in tree.readouts)
        return dataclasses.replace(tree, prefix=tree.prefix[:0], branches=branches, readouts=readouts)

    def model_inputs(self, batch: Arrays) -> Arrays:
        """Returns the arrays unchanged."""
        return batch


class Run:
    """The train step of a configuration over a dataset, and its gradient alone."""

    def __init__(self, config: configs.Config, trainer: Trainer, dataset: TokenizedDataset | RepeatedPrompts):
        self._dataset, self._trainer = dataset, trainer
        rows = config.train.rows_per_device
        length = choose_row_length(dataset.lengths, config.train.batch_size, rows, short_microbatches=True)
        self.plan = training_plan(
            dataset.lengths,
            dataset.readout_counts,
            dataset.edge_counts,
            batch_size=config.train.batch_size,
            steps=config.train.steps,
            epochs=0.0,
            row_length=length,
            short_length=short_row_length(length),
            microbatch_rows=rows,
            seed=config.train.seed,
        )
        self._step = trainer.compile_step(self.plan.short_length)
        # One step of gradient descent with rate 1 subtracts the gradient from the parameters.
        self._descent = dataclasses.replace(trainer, optimizer=optax.sgd(1.0), grad_clip=0.0)
        self._descend = self._descent.compile_step(self.plan.short_length)

    def arrays(self, index: int) -> Arrays:
        """Returns the arguments of a step: the batch on the device, and its number of microbatches."""
        rows = np.arange(self.plan.microbatch_rows)
        item = materialize(self._dataset, self.plan, index, rows)
        item["batch"] = shard_batch(self._trainer.mesh, item["batch"], len(rows), rows)
        return item

    def step(self, state: Arrays, item: Arrays) -> tuple[Arrays, float, float]:
        """Returns the state after a step, the loss and the seconds."""
        begin = time.perf_counter()
        state, outputs = jax.block_until_ready(self._step(state, item["batch"], item["microbatches"]))
        seconds = time.perf_counter() - begin
        loss, weight = jax.device_get(outputs["sums"]["loss/bradley_terry"])
        return state, float(loss / weight), seconds

    def gradient(self, params: Arrays, item: Arrays) -> Arrays:
        """Returns the gradient at these parameters."""
        state = self._descent.init(jax.tree.map(jnp.copy, params))
        moved = self._descend(state, item["batch"], item["microbatches"])[0]["params"]
        return jax.tree.map(jnp.subtract, params, moved)


def cosine_and_distance(first: Arrays, second: Arrays) -> tuple[float, float]:
    """Returns the cosine between two trees of arrays, and the norm of their difference over that of the first."""
    norms = optax.tree.norm(first), optax.tree.norm(second)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, first, second))
    return float(optax.tree.vdot(first, second) / (norms[0] * norms[1])), float(difference / norms[0])


def configuration(options: argparse.Namespace) -> configs.Config:
    """Returns the configuration of both runs."""
    config = configs.fine_tuning() if options.model else configs.default()
    config.model.path, config.model.head_init = options.model, 0.02
    config.train.update(steps=options.steps, batch_size=16, rows_per_device=1 if options.model else 4)
    config.data.synthetic_train = 16 * options.steps
    return config


def main() -> None:
    """Trains both ways and prints the differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="Hugging Face directory; empty: a random model")
    parser.add_argument("--data", default="synthetic", help="preference pairs")
    parser.add_argument("--steps", type=int, default=75, help="of 16 comparisons")
    parser.add_argument("--every", type=int, default=5, help="steps between comparisons of the gradients")
    options = parser.parse_args()
    config = configuration(options)
    tokenizer = Tokenizer.load(options.model)
    data_options = DatasetOptions(max_length=config.data.max_length)
    dataset, _ = load_dataset(
        options.data, tokenizer, data_options, split="train", synthetic_size=config.data.synthetic_train
    )
    dataset = dataset.with_attributes(("reward",))
    mesh = make_mesh([1] * len(AXES), jax.devices()[:1])
    jax.set_mesh(mesh)
    trainer = make_trainer(config, mesh, len(tokenizer))
    params = loading.initial_params(config.model, trainer.model, mesh, jax.random.key(0))
    shared, repeated = (Run(config, trainer, data) for data in (dataset, RepeatedPrompts(dataset)))
    tokens = [run.plan.sizes.tokens for run in (shared, repeated)]
    print(f"jax {jax.__version__}, {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}, float32")
    print(f"{options.steps} steps of 16 comparisons; tokens with shared prompts {tokens[0]:,}, repeated {tokens[1]:,}")

    states = [trainer.init(jax.tree.map(jnp.copy, params)) for _ in range(2)]  # a step donates its state
    losses, gradients, ratios = [], [], []
    for index in range(options.steps):
        items = shared.arrays(index), repeated.arrays(index)
        if index % options.every == 0:
            at = states[0]["params"]
            gradients.append(
                cosine_and_distance(*(run.gradient(at, x) for run, x in zip((shared, repeated), items, strict=True)))
            )
        results = [run.step(*each) for run, *each in zip((shared, repeated), states, items, strict=True)]
        states = [state for state, _, _ in results]
        losses.append([loss for _, loss, _ in results])
        ratios.append(results[1][2] / results[0][2])
        if index % options.every == 0:
            print(
                f"step {index + 1}: losses {losses[-1][0]:.7f} {losses[-1][1]:.7f}, 1 - cosine of the gradients "
                f"{1 - gradients[-1][0]:.1e}, difference {gradients[-1][1]:.1e}",
                flush=True,
            )
    found = np.array(losses)
    relative = np.abs(found[:, 1] - found[:, 0]) / found[:, 0]
    moved = cosine_and_distance(params, states[0]["params"])[1]
    apart = cosine_and_distance(states[0]["params"], states[1]["params"])[1]
    print(
        f"losses differ by at most {relative.max():.1e}, relative (median {np.median(relative):.1e}); gradients at the "
        f"same parameters: cosine at least 1 - {1 - min(c for c, _ in gradients):.1e}, relative difference at most "
        f"{max(d for _, d in gradients):.1e}"
    )
    print(f"final parameters: {apart:.1e} apart, relative; training moved them by {moved:.1e}")
    print(f"a step with repeated prompts takes {statistics.median(ratios[1:]):.2f} times as long (median)")


if __name__ == "__main__":
    main()
