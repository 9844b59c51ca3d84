"""Speed of the train step: packed against padded, a tight PyTorch loop, and TRL's RewardTrainer.

    python -m pip install -e '.[bench]'
    python ../shared/tools/smollm2.py DIR
    python experiments/bench_train.py --model=DIR --data=../shared/data/hh_harmless/train.jsonl.gz

Every side takes the same comparisons in turn, in one process, after a warm-up of every shape; the figures are medians
of comparisons/s, and of the ratios batch by batch. PyTorch and TRL are left out, with a word, where they are missing.
"""

import argparse
import importlib.util
import os
import resource
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.core import config as configs
from rmjax.core import program
from rmjax.core.mesh import make_mesh
from rmjax.data.packing import fill_rows, pack
from rmjax.data.schema import Tree, packed_spec
from rmjax.data.tokenisation import Options, TokenizedDataset, load_dataset
from rmjax.data.tokenizer import Tokenizer
from rmjax.models import build
from rmjax.training.objectives import make_objective
from rmjax.training.optimizer import make_optimizer, make_schedule
from rmjax.training.step import Trainer

Step = Callable[[list[int]], None]
ROW_LENGTH = 1152  # fills .85 of hh_harmless's batches of 16


def unshared(tree: Tree) -> Tree:
    """The same comparison with its prompt repeated in every branch."""
    branches = tuple(np.concatenate([tree.prefix, branch]) for branch in tree.branches)
    readouts = tuple((k, len(branch) - 1) for k, branch in enumerate(branches))
    return Tree(tree.prefix[:0], branches, readouts, tree.edges)


def jax_side(config, dataset: TokenizedDataset, *, packed: bool) -> Step:
    """Returns our train step over given comparisons, packed and shared or padded and unshared."""
    mesh = make_mesh(devices=jax.devices()[:1])
    jax.set_mesh(mesh)
    model = build.make_model(config.model, 0)
    schedule = make_schedule(config.optimizer, 1000)
    trainer = Trainer(
        model, make_objective(config.objective), make_optimizer(config.optimizer, schedule), schedule, 1.0, mesh
    )
    params = build.initial_params(config.model, model, mesh, jax.random.key(0))
    state = jax.jit(trainer.init, donate_argnums=0)(params)
    function = trainer.compile_step()

    def step(chosen: list[int]) -> None:
        nonlocal state
        trees = [dataset.tree(i) for i in chosen]
        if packed:
            rows = [[trees[i] for i in row] for row in pack([tree.length for tree in trees], ROW_LENGTH)]
            length, each = ROW_LENGTH, 1
        else:  # one comparison a row, both responses padded to the batch's longest, as the peers do
            rows = [[unshared(tree)] for tree in trees]
            length, each = 2 * -(-max(tree.longest for tree in trees) // 64) * 64, 2
        rows += [[]] * (-len(rows) % each)
        spec = packed_spec(each, length, 2 * 16, 16, 1)
        micro = [fill_rows(rows[i : i + each], spec) for i in range(0, len(rows), each)]
        count = len(micro)
        micro += [fill_rows([], spec)] * (16 - count)  # one program for any number of microbatches
        batch = {name: np.stack([part[name] for part in micro]) for name in spec}
        state, report = function(state, batch, np.int32(count))
        jax.block_until_ready(report)

    return step


def torch_side(path: str, dataset: TokenizedDataset, bfloat16: bool) -> Step:
    """A tight loop: each conversation alone, unpadded, gradients accumulated."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count())
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(chosen: list[int]) -> None:
        for i in chosen:
            tree = dataset.tree(i)
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                rewards = [
                    model(torch.from_numpy(np.concatenate([tree.prefix, branch])).long()[None]).logits.float()
                    for branch in tree.branches
                ]
            (-torch.nn.functional.logsigmoid(rewards[0] - rewards[1]).sum() / len(chosen)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def trl_side(path: str, dataset: TokenizedDataset, batch_size: int, bfloat16: bool) -> Step:
    """TRL's RewardTrainer with its defaults, its own collator, one optimizer step a call."""
    import datasets
    import transformers
    import trl

    whole = lambda tree, k: np.concatenate([tree.prefix, tree.branches[k]]).tolist()
    trees = [dataset.tree(i) for i in range(len(dataset))]
    table = datasets.Dataset.from_dict(
        {"chosen_input_ids": [whole(t, 0) for t in trees], "rejected_input_ids": [whole(t, 1) for t in trees],
         "chosen_ids": [whole(t, 0) for t in trees], "rejected_ids": [whole(t, 1) for t in trees]}
    )  # fmt: skip
    arguments = trl.RewardConfig(output_dir=os.devnull, per_device_train_batch_size=batch_size, report_to=[],
                                 use_cpu=True, bf16=bfloat16, max_length=None, save_strategy="no")  # fmt: skip
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype="float32")
    trainer = trl.RewardTrainer(model=model, args=arguments, train_dataset=table,
                                processing_class=transformers.AutoTokenizer.from_pretrained(path))  # fmt: skip
    trainer.create_optimizer_and_scheduler(1000)

    def step(chosen: list[int]) -> None:
        inputs = trainer.data_collator([trainer.train_dataset[i] for i in chosen])
        trainer.model.train()
        trainer.training_step(trainer.model, inputs)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def matmul_peak(dtype: str) -> float:
    """Returns FLOP/s of a 2048³ product with float32 accumulation: the median of 9."""
    x = jnp.ones((2048, 2048), dtype)
    product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32))
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / statistics.median(seconds)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--sides", default="packed,padded,torch,trl")
    flags = parser.parse_args()

    config = configs.default()
    config.model.path, config.model.dtype = flags.model, flags.dtype
    tokenizer = Tokenizer.load(flags.model)
    dataset, report = load_dataset((flags.data,), tokenizer, Options(max_length=1024), split="train")
    print(report)
    order = np.random.default_rng(0).permutation(len(dataset))
    batches = [order[i * flags.batch : (i + 1) * flags.batch].tolist() for i in range(flags.batches)]
    bfloat16 = flags.dtype == "bfloat16"
    makers = {
        "packed": lambda: jax_side(config, dataset, packed=True),
        "padded": lambda: jax_side(config, dataset, packed=False),
        "torch": lambda: torch_side(flags.model, dataset, bfloat16),
        "trl": lambda: trl_side(flags.model, dataset, flags.batch, bfloat16),
    }
    needs = {"torch": ("torch",), "trl": ("torch", "trl")}
    steps: dict[str, Step] = {}
    for name in flags.sides.split(","):
        if missing := [module for module in needs.get(name, ()) if importlib.util.find_spec(module) is None]:
            print(f"{name}: left out, {missing[0]} is not installed")
            continue
        steps[name] = makers[name]()
        start = time.perf_counter()
        for batch in batches:  # every shape warm
            steps[name](batch)
        print(f"{name}: warm after {time.perf_counter() - start:.0f} s")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for batch in batches:
        for name, step in steps.items():
            start = time.perf_counter()
            step(batch)
            seconds[name].append(time.perf_counter() - start)
    peak = matmul_peak(flags.dtype)
    decoder = build.make_model(config.model, 0).decoder
    heads = (decoder.num_heads + decoder.num_kv_heads) * decoder.head_dim
    matrices = decoder.num_layers * decoder.hidden_size * (2 * heads + 3 * decoder.intermediate_size)
    print(f"{os.cpu_count()} cores, {flags.dtype}, matmul peak {peak / 1e9:.0f} GFLOP/s, batches of {flags.batch}")
    for name, taken in seconds.items():
        rate = statistics.median(flags.batch / s for s in taken)
        lengths = [sum(int(dataset.lengths[i]) for i in batch) for batch in batches]
        flops = statistics.median(6 * matrices * n / s for n, s in zip(lengths, taken, strict=True))
        ratio = statistics.median(other / own for other, own in zip(taken, next(iter(seconds.values())), strict=True))
        tokens = statistics.median(n / s for n, s in zip(lengths, taken, strict=True))
        print(f"{name:>7}: {rate:.2f} comparisons/s, {tokens:.0f} unique tokens/s, {flops / peak:.0%} of the peak "
              f"on unique tokens; takes {ratio:.2f}x the time of the first")  # fmt: skip
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    program.use_huge_pages()
    main()
