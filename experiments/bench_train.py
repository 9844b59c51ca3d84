"""Benchmark of the train step: packed and padded batches in rmjax, a PyTorch loop, and TRL's RewardTrainer.

    python -m pip install -e '.[bench]'
    python ../shared/tools/smollm2.py DIR
    python experiments/bench_train.py --model=DIR --data=../shared/data/hh_harmless/train.jsonl.gz --batches=2

With --lora=RANK the sides of rmjax and TRL train adapters of all matrices and the head only (TRL: through PEFT).

Implementations (--sides):

* packed: rmjax's train step on prefix trees packed into rows.
* padded: rmjax's train step with the prompt repeated for both responses, and padding to the longest of the batch.
* torch: a loop over single conversations without padding or gradient checkpointing.
* trl: RewardTrainer.train() in the precision of --dtype, with --batch comparisons per step and otherwise its defaults:
  gradient checkpointing, padding to the longest of the batch.
* trl-default: RewardTrainer.train() with its defaults: bfloat16 autocast, 8 comparisons per step (so two updates for a
  batch of 16).

Each implementation runs in its own process, so that peak memory is measured separately. The process of the first one
stays alive; each of the others is started, alternates with the first over all batches, and is ended: at any time two
are in memory and one is running. Warm-up: JAX compiles every shape, torch runs every batch once, and TRL, whose steps
are slow, runs every shape through a single layer. All take the same optimizer steps (same AdamW, clipping, head and
learning rate): an untimed one on 2 comparisons, whose loss precedes any update, then the batches. In float32, losses
must agree with those of the first to about 1e-3, except for trl-default. Results are medians over the batches; ratios
are computed per batch. Implementations that are not installed are skipped.
"""

import argparse
import dataclasses
import importlib.util
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.core import config as configs
from rmjax.core import program
from rmjax.core.mesh import make_mesh
from rmjax.data.packing.plan import count_microbatches, short_row_length
from rmjax.data.packing.rows import fill_rows, pack
from rmjax.data.schema import Tree, packed_spec
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import loading, partition
from rmjax.models.lora import LoraConfig
from rmjax.training.objectives import make_objective
from rmjax.training.optimizer import make_optimizer, make_schedule
from rmjax.training.step import Trainer

Batches = Iterator[list[int]]  # indices of the comparisons of each step
Reply = Callable[[float], None]  # called with the loss of a completed step
ROW_LENGTH = 1152  # with short rows, 91 % of the slots are filled for hh_harmless and batches of 16
LEARNING_RATE = 1e-6  # so small that rounding errors, amplified by Adam's first steps, change losses by less than 1e-3


def head(hidden_size: int) -> np.ndarray:
    """Returns the initial reward head [D] of all implementations; with zeros, every loss would be ln 2."""
    return np.random.default_rng(0).normal(0, 0.02, hidden_size).astype(np.float32)


def conversations(tree: Tree) -> list[np.ndarray]:
    """Returns the tokens of both whole conversations, chosen first."""
    return [np.concatenate([tree.prefix, branch]) for branch in tree.branches]


def unshared(tree: Tree) -> Tree:
    """Returns the comparison with the prompt repeated in every branch."""
    branches = tuple(conversations(tree))
    readouts = tuple((k, len(branch) - 1) for k, branch in enumerate(branches))
    return Tree(tree.prefix[:0], branches, readouts, tree.edges)


class Rmjax:
    """rmjax's train step, compiled for the shapes of all batches."""

    def __init__(self, flags: argparse.Namespace, dataset: TokenizedDataset, batches: list[list[int]], packed: bool):
        config = model_config(flags)
        config.lora.rank = flags.lora
        config.optimizer.learning_rate, config.optimizer.schedule = LEARNING_RATE, "constant"
        mesh = make_mesh(devices=jax.devices()[:1])
        jax.set_mesh(mesh)
        model = dataclasses.replace(loading.make_model(config.model, 0), lora=LoraConfig.from_config(config.lora))
        schedule = make_schedule(config.optimizer, 1)
        trainer = Trainer(
            model,
            make_objective(config.objective),
            make_optimizer(config.optimizer, schedule),
            schedule,
            config.optimizer.grad_clip,
            mesh,
            partition.trainable_pattern(config),
        )
        params = loading.initial_params(config.model, model, mesh, jax.random.key(0))
        params["head"]["kernel"] = jnp.asarray(head(model.decoder.hidden_size)[:, None])
        self._state = jax.jit(trainer.init, donate_argnums=0)(params)
        self._dataset, self._packed, self._rows_each = dataset, packed, 1 if packed else 2
        self._largest = max(map(len, batches))
        self._short = short_row_length(ROW_LENGTH) if packed else 0
        self._microbatches = max(-(-len(self._rows(batch)) // self._rows_each) for batch in batches)
        step = trainer.compile_step(self._short)
        start = time.perf_counter()
        self._programs = {
            length: step.lower(self._state, self._batch([], length), np.zeros(2, np.int32)).compile()
            for length in {self._length(batch) for batch in batches}
        }
        self.prepared = time.perf_counter() - start

    def run(self, batches: Batches, reply: Reply) -> None:
        """Takes one step per batch."""
        for batch in batches:
            rows = self._rows(batch)
            length = min(length for length in self._programs if length >= self._length(batch))
            used = np.array([sum(tree.length for tree in row) for row in rows])
            count = count_microbatches(used, self._short, self._rows_each)
            self._state, report = self._programs[length](self._state, self._batch(rows, length), count)
            report, self._state = jax.block_until_ready((report, self._state))
            total, weight = jax.device_get(report["sums"]["loss/bradley_terry"])
            reply(float(total / weight))

    def _length(self, batch: list[int]) -> int:
        # Padded: both responses of a comparison in one row, each padded to the longest, a multiple of 64.
        longest = max(self._dataset.tree(i).longest for i in batch)
        return ROW_LENGTH if self._packed else 2 * 64 * -(-longest // 64)

    def _rows(self, batch: list[int]) -> list[list[Tree]]:
        trees = [self._dataset.tree(i) for i in batch]
        if not self._packed:
            return [[unshared(tree)] for tree in trees]
        packed = [[trees[i] for i in row] for row in pack([tree.length for tree in trees], ROW_LENGTH)]
        return sorted(packed, key=lambda row: sum(tree.length for tree in row) <= self._short)  # short rows are last

    def _batch(self, rows: list[list[Tree]], length: int) -> dict[str, np.ndarray]:
        # Microbatches without rows are padding, so that one program is used for any number of microbatches.
        spec = packed_spec(self._rows_each, length, 2 * self._largest, self._largest, 1)
        starts = range(0, self._microbatches * self._rows_each, self._rows_each)
        microbatches = [fill_rows(rows[start : start + self._rows_each], spec) for start in starts]
        return {name: np.stack([microbatch[name] for microbatch in microbatches]) for name in spec}


class TorchLoop:
    """Gradient accumulation over single conversations, without padding or gradient checkpointing."""

    def __init__(self, flags: argparse.Namespace, dataset: TokenizedDataset, batches: list[list[int]]):
        import torch

        self._dataset, self._bfloat16 = dataset, flags.dtype == "bfloat16"
        self._model = torch_model(flags.model)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        start = time.perf_counter()
        for batch in batches:
            self._backward(batch)
        self._optimizer.zero_grad()
        self.prepared = time.perf_counter() - start

    def run(self, batches: Batches, reply: Reply) -> None:
        """Takes one step per batch."""
        import torch

        for batch in batches:
            loss = self._backward(batch)
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()
            reply(loss)

    def _backward(self, batch: list[int]) -> float:
        import torch

        total = 0.0
        for i in batch:
            sequences = [torch.from_numpy(ids).long()[None] for ids in conversations(self._dataset.tree(i))]
            with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
                rewards = [self._model(ids, use_cache=False).logits.float() for ids in sequences]
            loss = -torch.nn.functional.logsigmoid(rewards[0] - rewards[1]).sum() / len(batch)
            loss.backward()
            total += loss.item()
        return total


class Trl:
    """RewardTrainer.train() with its own collator, and a data loader that yields the given batches."""

    def __init__(self, flags: argparse.Namespace, dataset: TokenizedDataset, batches: list[list[int]], default: bool):
        import datasets

        datasets.disable_progress_bars()
        self._flags, self._default = flags, default
        self._size = 8 if default else flags.batch  # 8: RewardConfig's per_device_train_batch_size
        self._bfloat16 = default or flags.dtype == "bfloat16"
        pairs = [conversations(dataset.tree(i)) for i in range(len(dataset))]
        columns = {"chosen_ids": [pair[0] for pair in pairs], "rejected_ids": [pair[1] for pair in pairs]}
        self._table = datasets.Dataset.from_dict(columns)
        trl_batches = [part for batch in batches for part in self._split(batch)]
        shapes = {(2 * len(part), max(dataset.tree(i).longest for i in part)) for part in trl_batches}
        start = time.perf_counter()
        warm_up_shapes(flags.model, shapes, self._bfloat16)
        self.prepared = time.perf_counter() - start

    def _split(self, batch: list[int]) -> list[list[int]]:
        return [batch[start : start + self._size] for start in range(0, len(batch), self._size)]

    def run(self, batches: Batches, reply: Reply) -> None:
        """Takes one step, or several of its batch size, per batch."""
        import trl

        losses: list[float] = []
        split = self._split

        class Trainer(trl.RewardTrainer):
            """A trainer whose data loader yields the given batches."""

            def get_train_dataloader(self) -> Iterator[dict]:
                for batch in batches:
                    for part in split(batch):
                        yield self.data_collator([self.train_dataset[i] for i in part])
                    # The trainer resumes this generator when the step is complete.
                    reply(statistics.mean(losses))
                    losses.clear()

            def training_step(self, *args, **kwargs):
                loss = super().training_step(*args, **kwargs)
                losses.append(loss.item())
                return loss

        with tempfile.TemporaryDirectory() as directory:
            options = {} if self._default else {"per_device_train_batch_size": self._size, "bf16": self._bfloat16}
            arguments = trl.RewardConfig(
                directory,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                max_steps=10**6,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                **options,
            )
            adapters = {}
            if self._flags.lora:
                import peft

                adapters["peft_config"] = peft.LoraConfig(
                    r=self._flags.lora, lora_alpha=32, target_modules="all-linear", task_type="SEQ_CLS"
                )
            Trainer(
                model=torch_model(self._flags.model),
                args=arguments,
                train_dataset=self._table,
                # The classifier reads the last token that is not padding, so the pad token must not be the EOS token.
                processing_class=Tokenizer.load(self._flags.model).with_separate_pad().base,
                **adapters,
            ).train()


def torch_model(path: str):
    """Returns transformers' classifier with the head of `head`, and parameters in float32."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # it would warn about the missing head
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    model.score.weight.data.copy_(torch.from_numpy(head(model.config.hidden_size)))
    model.config.pad_token_id = None
    return model


def warm_up_shapes(path: str, shapes: set[tuple[int, int]], bfloat16: bool) -> None:
    """Runs one layer of the model forward and backward with each shape (sequences, length), which creates kernels."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(path, num_hidden_layers=1, num_labels=1, dtype="float32")
    config.pad_token_id = None
    model = transformers.AutoModel.from_config(config)
    for shape in sorted(shapes):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            model(torch.ones(shape, dtype=torch.long), use_cache=False).last_hidden_state[:, -1].sum().backward()


def matmul_peak(dtype: str) -> float:
    """Returns the FLOP/s of a 2048³ matrix product with float32 accumulation, the median of 9."""
    x = jnp.ones((2048, 2048), dtype)
    product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(seconds)


def model_config(flags: argparse.Namespace):
    """Returns rmjax's configuration with the model of the flags."""
    config = configs.default()
    config.model.path, config.model.dtype = flags.model, flags.dtype
    return config


def load_data(flags: argparse.Namespace) -> TokenizedDataset:
    """Returns the comparisons; the first process tokenizes them, the others read the cache."""
    return load_dataset((flags.data,), Tokenizer.load(flags.model), DatasetOptions(max_length=1024), split="train")[0]


SIDES = {
    "packed": lambda *arguments: Rmjax(*arguments, packed=True),
    "padded": lambda *arguments: Rmjax(*arguments, packed=False),
    "torch": TorchLoop,
    "trl": lambda *arguments: Trl(*arguments, default=False),
    "trl-default": lambda *arguments: Trl(*arguments, default=True),
}
REQUIRES = {"torch": ["torch"], "trl": ["torch", "trl"], "trl-default": ["torch", "trl"]}


def serve(name: str, flags: argparse.Namespace, batches: list[list[int]], pipe) -> None:
    """Runs in the process of an implementation: warms up, then takes a step for each batch from the pipe."""
    start = time.perf_counter()
    side = SIDES[name](flags, load_data(flags), batches)

    def receive() -> Batches:
        pipe.send((time.perf_counter() - start, side.prepared))
        while True:
            try:
                yield pipe.recv()
            except EOFError:
                raise SystemExit from None

    def reply(loss: float) -> None:
        pipe.send((loss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))

    side.run(receive(), reply)


class Process:
    """The process of an implementation, with its losses, step times in seconds, and peak memory in KiB."""

    def __init__(self, name: str, flags: argparse.Namespace, batches: list[list[int]]):
        context = multiprocessing.get_context("spawn")
        self.name, self.losses, self.seconds, self.peak = name, [], [], 0
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=serve, args=(name, flags, batches, child_pipe), daemon=True)
        self._process.start()
        child_pipe.close()
        self.ready, self.prepared = self._receive()

    def step(self, batch: list[int]) -> None:
        """Takes a step, and stores its loss, its time, and the peak memory so far."""
        start = time.perf_counter()
        self._pipe.send(batch)
        loss, self.peak = self._receive()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss)

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()

    def _receive(self):
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit(f"the process of {self.name} ended, see its error above") from None


def main() -> None:
    """Runs the benchmark and prints its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face directory of a causal LM")
    parser.add_argument("--data", required=True, help="JSONL file of pairs")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=16, help="comparisons per step")
    parser.add_argument("--batches", type=int, default=3, help="number of timed steps")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: all weights are trained")
    parser.add_argument("--sides", default=",".join(SIDES), help="implementations in order, separated by commas")
    flags = parser.parse_args()
    requested = flags.sides.split(",")
    if unknown := set(requested) - set(SIDES):
        parser.error(f"--sides has {', '.join(sorted(unknown))}; expected {', '.join(SIDES)}")
    if flags.lora and "torch" in requested:
        parser.error("--lora is not implemented for the side torch; leave it out of --sides")
    began = time.perf_counter()
    dataset = load_data(flags)
    order = np.random.default_rng(0).permutation(len(dataset))
    batches = [order[i * flags.batch : (i + 1) * flags.batch].tolist() for i in range(flags.batches)]

    def start(name: str) -> Process:
        side = Process(name, flags, [batches[0][:2], *batches])
        side.step(batches[0][:2])
        print(
            f"{name}: ready after {side.ready:.1f} s, of which {side.prepared:.1f} s compilation or warm-up; first "
            f"step, on 2 comparisons, {side.seconds[0]:.1f} s, with loss {side.losses[0]:.5f} before any update",
            flush=True,
        )
        return side

    names = [name for name in requested if installed(name)]
    first, sides, own = start(names[0]), [], []
    for name in names[1:]:
        side = start(name)
        for number, batch in enumerate(batches, 1):
            first.step(batch)
            side.step(batch)
            # Losses of the first implementation's first pass, after as many updates as this one has had.
            print(
                f"batch {number}: {names[0]} {first.seconds[-1]:.2f} s, {name} {side.seconds[-1]:.2f} s; losses "
                f"{first.losses[number]:.5f} and {side.losses[number]:.5f}",
                flush=True,
            )
        side.close()
        sides.append(side)
        own.append(first.seconds[-len(batches) :])
    if not sides:
        for batch in batches:
            first.step(batch)
    first.close()

    peak = matmul_peak(flags.dtype)
    decoder = loading.make_model(model_config(flags).model, 0).decoder
    heads = (decoder.num_heads + decoder.num_kv_heads) * decoder.head_dim
    per_weight = 4 if flags.lora else 6  # FLOP per token: no gradients of frozen matrices
    matrices = decoder.num_layers * decoder.hidden_size * (2 * heads + 3 * decoder.intermediate_size)
    amounts = {
        "comparisons": [len(batch) for batch in batches],
        "real": [sum(len(ids) for i in batch for ids in conversations(dataset.tree(i))) for batch in batches],
        "unique": [sum(dataset.tree(i).length for i in batch) for batch in batches],
    }
    print(
        f"\n{os.cpu_count()} cores, {flags.dtype}, {flags.batches} batches of {flags.batch}; matrix product peak "
        f"{peak / 1e9:.0f} GFLOP/s\n"
    )
    columns = (
        "side",
        "comparisons/s",
        "real tokens/s",
        "unique tokens/s",
        "GFLOP/s",
        "of peak",
        "time ratio",
        "compile",
        "peak memory",
    )
    print(f"{columns[0]:<12}" + "".join(f"  {column}" for column in columns[1:]))
    for side, base in zip([first, *sides], [first.seconds[1:], *own], strict=True):
        times = side.seconds[1:]
        rates = {
            unit: statistics.median(values[i % len(batches)] / seconds for i, seconds in enumerate(times))
            for unit, values in amounts.items()
        }
        flops = per_weight * matrices * rates["unique"]
        ratio = statistics.median(s / b for s, b in zip(times, base, strict=True))
        cells = (
            f"{rates['comparisons']:.2f}",
            f"{rates['real']:.0f}",
            f"{rates['unique']:.0f}",
            f"{flops / 1e9:.0f}",
            f"{flops / peak:.0%}",
            f"{ratio:.2f}",
            f"{side.prepared:.0f} s",
            f"{side.peak / 2**20:.1f} GiB",
        )
        aligned = (f"  {cell:>{len(column)}}" for cell, column in zip(cells, columns[1:], strict=True))
        print(f"{side.name:<12}" + "".join(aligned))
    print(
        "\nReal tokens: both whole conversations without padding. Unique tokens: shared prompts counted once.\n"
        f"GFLOP/s: {per_weight} FLOP per unique token and weight of the layers' matrices, without attention"
        " and adapters, for all sides.\n"
        "Compile: compilation or warm-up, once, not included in the steps.\n"
        f"Total time: {time.perf_counter() - began:.0f} s."
    )


def installed(name: str) -> bool:
    """Returns whether the requirements of an implementation are installed; prints a message if not."""
    missing = [module for module in REQUIRES.get(name, ()) if importlib.util.find_spec(module) is None]
    if missing:
        print(f"{name}: skipped, because {missing[0]} is not installed")
    return not missing


if __name__ == "__main__":
    program.use_huge_pages()
    main()
