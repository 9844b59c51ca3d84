"""Benchmark of packing and prompt sharing: tokens and train step time of an epoch, against padded layouts.

    python experiments/bench_packing.py --tokenizer=DIR ../shared/data

Data: pairs (hh_harmless), K-wise data (qa_feedback_kwise, K = 4), and single responses grouped by prompt (summeval, 16
per article). Layouts of the same batches, for the same model, measured alternately:

* packed: prefix trees with each shared prompt once, packed into rows.
* padded: one row per response with its prompt, padded to the longest of the batch (rounded up to a multiple of 64).
* sorted: as padded, but the responses of the batch are sorted by length and each microbatch is padded to its longest.
* pairs: K-wise data as pairs, one record of two rows per untied pair, as in pairwise trainers; sorted as well.

The model is randomly initialized, with the sizes of the flags, or pretrained with `--model`. Times are sums over all
batches. `--batches` limits the benchmark to the first batches of the epoch, for large models.
"""

import argparse
import os
import pathlib
import time

import jax
import numpy as np
import optax
import tqdm

from rmjax.core import config as configs
from rmjax.core import program
from rmjax.core.mesh import make_mesh
from rmjax.data.packing.pipeline import materialize
from rmjax.data.packing.plan import BatchPlan, choose_row_length, short_row_length, training_plan
from rmjax.data.packing.rows import fill_rows
from rmjax.data.schema import Tree, packed_spec
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import loading
from rmjax.training.objectives import make_head, make_objective
from rmjax.training.optimizer import make_optimizer, make_schedule
from rmjax.training.step import Trainer

UNIT = 64  # tokens; padded lengths are multiples of it
# Data set: (file, objective, comparisons per batch)
SETS = {
    "hh_harmless": ("train.jsonl.gz", "bradley_terry", 16),
    "qa_feedback_kwise": ("train.jsonl", "pairwise", 8),
    "summeval": ("train.jsonl", "regression", 2),
}
MICROBATCH_TOKENS = 4096  # of a padded microbatch, at most, unless one sequence is longer


def split_responses(tree: Tree) -> list[Tree]:
    """Returns one tree per response, with the prompt repeated."""
    return [
        Tree(
            tree.prefix[:0],
            (np.concatenate([tree.prefix, branch]),),
            ((0, len(tree.prefix) + len(branch) - 1),),
            (),
            None if tree.labels is None else tree.labels[k : k + 1],
        )
        for k, branch in enumerate(tree.branches)
    ]


def split_pairs(tree: Tree) -> list[Tree]:
    """Returns one tree per response of every pair; with K > 2, a response is repeated for each of its pairs."""
    responses = split_responses(tree)
    return [responses[k] for edge in tree.edges for k in (edge.winner, edge.loser)]


class Layout:
    """Train state of a layout, with one compiled program per shape."""

    def __init__(self, config, dataset: TokenizedDataset, vocab_size: int):
        mesh = make_mesh(devices=jax.devices()[:1])
        jax.set_mesh(mesh)
        head = make_head(config.objective, dataset)
        model = loading.make_model(config.model, vocab_size, head)
        schedule = make_schedule(config.optimizer, 1)
        optimizer = make_optimizer(config.optimizer, schedule)
        objective = make_objective(config.objective, head)
        self._trainer = Trainer(model, objective, optimizer, schedule, 1.0, mesh)
        params = loading.initial_params(config.model, model, mesh, jax.random.key(0))
        self._state = jax.jit(self._trainer.init, donate_argnums=0)(params)
        self._attributes = len(head.attributes)
        self._compiled: dict[tuple, jax.stages.Compiled] = {}

    def fill(self, rows: list[list[Tree]], length: int, readouts: int, edges: int) -> dict[str, np.ndarray]:
        """Returns the arrays of a microbatch."""
        return fill_rows(rows, packed_spec(len(rows), length, readouts, max(edges, 1), self._attributes))

    def _program(self, name: str, function, *arguments):
        key = (name, *(leaf.shape for leaf in jax.tree.leaves(arguments)))
        if key not in self._compiled:
            self._compiled[key] = function.lower(*arguments).compile()
        return self._compiled[key]


class Packed(Layout):
    """The train step of rmjax.training, with one program for all batches."""

    def seconds(self, dataset: TokenizedDataset, plan: BatchPlan, step: int) -> float:
        """Returns the time of a step, in seconds."""
        item = materialize(dataset, plan, step, np.arange(plan.microbatch_rows))
        batch, count = item["batch"], item["microbatches"]
        step = self._program("step", self._trainer.compile_step(plan.short_length), self._state, batch, count)
        start = time.perf_counter()
        self._state, report = step(self._state, batch, count)
        jax.block_until_ready((self._state, report))
        return time.perf_counter() - start


class Padded(Layout):
    """Gradient accumulation over padded microbatches of different shapes, then one update."""

    def seconds(self, responses: list[Tree], by_length: bool) -> tuple[float, int]:
        """Returns the time of a step in seconds, and its number of tokens with padding."""
        trainer, microbatches, slots = self._trainer, [], 0
        longest = max(tree.length for tree in responses)
        responses = sorted(responses, key=lambda tree: tree.length) if by_length else responses
        while responses:  # from the end: if sorted, the longest first
            length = -(-(responses[-1].length if by_length else longest) // UNIT) * UNIT
            count = max(1, MICROBATCH_TOKENS // length)
            microbatches.append(self.fill([[tree] for tree in responses[-count:]], length, 1, 0))
            slots += length * len(responses[-count:])
            responses = responses[:-count]

        def loss(params, rows):
            # The cost of the loss is negligible against that of the model, so a sum of squares is representative.
            return jax.numpy.sum(trainer.model.rewards(params, rows) ** 2)

        gradient = jax.jit(jax.grad(loss))
        add = jax.jit(lambda a, b: jax.tree.map(jax.numpy.add, a, b), donate_argnums=0)

        def update(state, gradients):
            updates, opt_state = trainer.optimizer.update(gradients, state["opt_state"], state["params"])
            return state | {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}

        update = jax.jit(update, donate_argnums=0)
        programs = [self._program("gradient", gradient, self._state["params"], rows) for rows in microbatches]
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._state["params"])
        add = self._program("add", add, abstract, abstract)
        update = self._program("update", update, self._state, abstract)
        start = time.perf_counter()
        total = None
        for compiled, rows in zip(programs, microbatches, strict=True):
            gradients = compiled(self._state["params"], rows)
            total = gradients if total is None else add(total, gradients)
        self._state = update(self._state, total)
        jax.block_until_ready(self._state)
        return time.perf_counter() - start, slots


def ratios(amounts: dict[str, float]) -> str:
    """Returns the amount of each layout, and its ratio to that of the packed layout, as text."""
    return ", ".join(f"{value:,.0f} {name} ({value / amounts['packed']:.2f}x)" for name, value in amounts.items())


def measure(name: str, folder: pathlib.Path, flags: argparse.Namespace) -> None:
    """Runs the benchmark on one data set and prints its numbers of tokens and times."""
    file, objective, batch_size = SETS[name]
    config = configs.default()
    config.model.path, config.model.dtype = flags.model, flags.dtype
    config.model.hidden_size, config.model.num_layers = flags.hidden_size, flags.layers
    config.model.intermediate_size = 3 * flags.hidden_size
    tokenizer = Tokenizer.load(flags.tokenizer)
    options = DatasetOptions(max_length=4096, group_prompts=True)
    dataset, report = load_dataset((str(folder / name / file),), tokenizer, options, split="train")
    print(report)
    config.objective.name = objective
    packed, padded = (layout(config, dataset, len(tokenizer)) for layout in (Packed, Padded))
    dataset = dataset.with_attributes(make_head(config.objective, dataset).attributes)
    row_length = choose_row_length(dataset.lengths, batch_size, 1, short_microbatches=True)
    plan = training_plan(
        dataset.lengths,
        dataset.readout_counts,
        dataset.edge_counts,
        batch_size=batch_size,
        steps=0,
        epochs=1.0,
        row_length=row_length,
        short_length=short_row_length(row_length),
        microbatch_rows=1,
        seed=0,
    )
    steps = range(min(flags.batches or plan.num_steps, plan.num_steps))
    layouts = {"padded": (split_responses, False), "sorted": (split_responses, True)}
    if objective == "pairwise":
        layouts["pairs"] = (split_pairs, True)
    times: dict[str, list[float]] = {layout: [] for layout in ("packed", *layouts)}
    slots = dict.fromkeys(times, 0) | {"packed": plan.padded_tokens(steps)}
    for step in tqdm.tqdm(steps, desc=name, unit="step"):
        times["packed"].append(packed.seconds(dataset, plan, step))
        trees = [dataset.tree(int(i)) for i in plan.comparisons(step)]
        for layout, (split, by_length) in layouts.items():
            seconds, computed = padded.seconds([part for tree in trees for part in split(tree)], by_length)
            times[layout].append(seconds)
            slots[layout] += computed
    used = np.concatenate([plan.comparisons(step) for step in steps])
    unique = int(dataset.lengths[used].sum())
    real = sum(part.length for i in used for part in split_responses(dataset.tree(int(i))))
    total_seconds = {layout: sum(seconds) for layout, seconds in times.items()}
    print(
        f"{name}: {len(steps)} of {plan.num_steps} batches of {batch_size} comparisons, rows of {row_length} tokens\n"
        f"  tokens: {real:,} real, {unique:,} unique ({real / unique:.2f}x)\n"
        f"  tokens with padding: {ratios(slots)}\n  seconds: {ratios(total_seconds)}",
        flush=True,
    )


def main() -> None:
    """Runs the benchmark on each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path, help="directory of the data sets")
    parser.add_argument("--tokenizer", required=True, help="Hugging Face directory or hub name")
    parser.add_argument("--model", default="", help="pretrained model; default: randomly initialized")
    parser.add_argument("--hidden_size", type=int, default=128, help="of the randomly initialized model")
    parser.add_argument("--layers", type=int, default=4, help="of the randomly initialized model")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, default=0, help="number of batches; 0: one epoch")
    parser.add_argument("--sets", default=",".join(SETS), help="data sets, separated by commas")
    flags = parser.parse_args()
    print(f"{os.cpu_count()} cores, {flags.dtype}, {flags.model or f'D = {flags.hidden_size}, L = {flags.layers}'}")
    for name in flags.sets.split(","):
        measure(name, flags.data, flags)


if __name__ == "__main__":
    program.use_huge_pages()
    main()
