"""What packing and sharing prompts save: tokens, and seconds for one epoch of the train step.

    python experiments/bench_packing.py --tokenizer=DIR ../shared/data

For pairs (hh_harmless), K-wise data (qa_feedback_kwise, K = 4) and single responses grouped by prompt (summeval, 16 to
an article), ways of laying out the same steps, with the same model, batch by batch in turn:

* packed: prefix trees, each shared prompt once, packed into rows.
* padded: each response a row of its own with its prompt, padded to the longest of the step, in 64s.
* sorted: the same, but the step's responses sorted by length and each microbatch padded to its own longest.
* pairs: K-wise data as trainers of pairs take it, every untied pair a record with two rows; sorted too.

The model is random, of the sizes given here; the ratio is the sum of the times of all batches. `--batches` takes the
first so many of the epoch, so that a large model can be timed too; `--model` times a pretrained one.
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
# name: (file, objective, comparisons a step)
SETS = {
    "hh_harmless": ("train.jsonl.gz", "bradley_terry", 16),
    "qa_feedback_kwise": ("train.jsonl", "pairwise", 8),
    "summeval": ("train.jsonl", "regression", 2),
}
MICRO_TOKENS = 4096  # of a padded microbatch, about


def lone_responses(tree: Tree) -> list[Tree]:
    """Returns each response as a conversation of its own."""
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


def paired_responses(tree: Tree) -> list[Tree]:
    """Returns both responses of every pair; with K > 2 a response comes once for each pair that it is in."""
    responses = lone_responses(tree)
    return [responses[k] for edge in tree.edges for k in (edge.winner, edge.loser)]


class Side:
    """Our model and optimizer over steps laid out one way, compiled once a shape."""

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
        """Lays rows out as one microbatch."""
        return fill_rows(rows, packed_spec(len(rows), length, readouts, max(edges, 1), self._attributes))

    def _program(self, name: str, function, *arguments):
        key = (name, *(leaf.shape for leaf in jax.tree.leaves(arguments)))
        if key not in self._compiled:
            self._compiled[key] = function.lower(*arguments).compile()
        return self._compiled[key]


class Packed(Side):
    """The train step itself, one program for all steps."""

    def seconds(self, dataset: TokenizedDataset, plan: BatchPlan, step: int) -> float:
        """Returns the time of a step."""
        item = materialize(dataset, plan, step, np.arange(plan.microbatch_rows))
        batch, count = item["batch"], item["microbatches"]
        step = self._program("step", self._trainer.compile_step(plan.short_length), self._state, batch, count)
        start = time.perf_counter()
        self._state, report = step(self._state, batch, count)
        jax.block_until_ready((self._state, report))
        return time.perf_counter() - start


class Padded(Side):
    """Microbatches of many shapes: a gradient each, added up, then one update."""

    def seconds(self, responses: list[Tree], by_length: bool) -> tuple[float, int]:
        """Returns the time of a step, and the token slots that it computed."""
        trainer, micro, slots = self._trainer, [], 0
        longest = max(tree.length for tree in responses)
        responses = sorted(responses, key=lambda tree: tree.length) if by_length else responses
        while responses:  # where sorted, the longest first; as many as fill a microbatch
            length = -(-(responses[-1].length if by_length else longest) // UNIT) * UNIT
            each = max(1, MICRO_TOKENS // length)
            micro.append(self.fill([[tree] for tree in responses[-each:]], length, 1, 0))
            slots += length * len(responses[-each:])
            responses = responses[:-each]

        def loss(params, rows):
            # The sum of squares stands for any loss on the rewards: what is timed is the model.
            return jax.numpy.sum(trainer.model.rewards(params, rows) ** 2)

        gradient = jax.jit(jax.grad(loss))
        add = jax.jit(lambda a, b: jax.tree.map(jax.numpy.add, a, b), donate_argnums=0)

        def update(state, gradients):
            updates, opt_state = trainer.optimizer.update(gradients, state["opt_state"], state["params"])
            return state | {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}

        update = jax.jit(update, donate_argnums=0)
        programs = [self._program("gradient", gradient, self._state["params"], rows) for rows in micro]
        abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._state["params"])
        add = self._program("add", add, abstract, abstract)
        update = self._program("update", update, self._state, abstract)
        start = time.perf_counter()
        total = None
        for compiled, rows in zip(programs, micro, strict=True):
            found = compiled(self._state["params"], rows)
            total = found if total is None else add(total, found)
        self._state = update(self._state, total)
        jax.block_until_ready(self._state)
        return time.perf_counter() - start, slots


def ratio(sides: dict[str, float]) -> str:
    """Returns the sides, and how many times the packed one each other is."""
    return ", ".join(f"{value:,.0f} {side} ({value / sides['packed']:.2f}x)" for side, value in sides.items())


def measure(name: str, folder: pathlib.Path, flags: argparse.Namespace) -> None:
    """Prints a data set's tokens and times."""
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
    packed, padded = (side(config, dataset, len(tokenizer)) for side in (Packed, Padded))
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
    ways = {"padded": (lone_responses, False), "sorted": (lone_responses, True)}
    if objective == "pairwise":
        ways["pairs"] = (paired_responses, True)
    times: dict[str, list[float]] = {side: [] for side in ("packed", *ways)}
    slots = dict.fromkeys(times, 0) | {"packed": plan.padded_tokens(steps)}
    for step in tqdm.tqdm(steps, desc=name, unit="step"):
        times["packed"].append(packed.seconds(dataset, plan, step))
        trees = [dataset.tree(int(i)) for i in plan.comparisons(step)]
        for side, (lay_out, by_length) in ways.items():
            seconds, computed = padded.seconds([one for tree in trees for one in lay_out(tree)], by_length)
            times[side].append(seconds)
            slots[side] += computed
    used = np.concatenate([plan.comparisons(step) for step in steps])
    unique = int(dataset.lengths[used].sum())
    real = sum(t.length for i in used for t in lone_responses(dataset.tree(int(i))))
    spent = {side: sum(each) for side, each in times.items()}
    print(
        f"{name}: {len(steps)} of {plan.num_steps} steps of {batch_size}, rows of {row_length}\n"
        f"  tokens: {real:,} real, {unique:,} unique ({real / unique:.2f}x)\n"
        f"  slots computed: {ratio(slots)}\n  seconds: {ratio(spent)}",
        flush=True,
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path, help="the folder that holds the data sets")
    parser.add_argument("--tokenizer", required=True, help="a Hugging Face directory")
    parser.add_argument("--model", default="", help="a pretrained model instead of the random one")
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batches", type=int, default=0, help="steps of the epoch; 0: all")
    parser.add_argument("--sets", default=",".join(SETS))
    flags = parser.parse_args()
    print(f"{os.cpu_count()} cores, {flags.dtype}, {flags.model or f'D = {flags.hidden_size}, L = {flags.layers}'}")
    for name in flags.sets.split(","):
        measure(name, flags.data, flags)


if __name__ == "__main__":
    program.use_huge_pages()
    main()
