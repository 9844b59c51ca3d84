"""Benchmark on one GPU: attention kernels, and the train step beside PyTorch and TRL on the same card.

    python experiments/bench_gpu.py check     # every kernel against dense attention in float32
    python experiments/bench_gpu.py kernels   # forward and backward of each kernel
    python experiments/bench_gpu.py tune      # block sizes of the kernel `triton`
    python experiments/bench_gpu.py train --shape=1b --sides=rmjax,torch,trl
    python experiments/bench_gpu.py score --shape=1b --sides=rmjax,torch

Data: invented comparisons with lognormal lengths (median 180 tokens of prompt and 250 of each response, at most 2,048
tokens a conversation), the same for all implementations. Models: random parameters of the shapes in `SHAPES`, float32
parameters and AdamW moments, bfloat16 matrix products.

`train`: each implementation runs in its own process on the same card, and their steps alternate. `rmjax` packs prefix
trees into rows; `torch` is transformers' classifier with SDPA attention, batches sorted by length and padded to their
longest conversation, without gradient checkpointing; `trl` is RewardTrainer in bfloat16 with its defaults (gradient
checkpointing) and 8 comparisons per device. Model FLOPs: 6 per parameter (without the embedding) and token, and
attention over visible pairs. `MFU` counts each implementation's own tokens without padding (a shared prompt once in
rmjax, twice in the others), relative to --peak; `comparisons/s` compares the same work.

`score`: rewards of the same comparisons with bfloat16 parameters; `rmjax` is the scorer of rmjax.score and rmjax.serve,
`torch` the classifier in inference mode on conversations sorted by length and padded. FLOPs: a third of the above.
"""

import argparse
import functools
import importlib.util
import multiprocessing
import os
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.core import config as configs
from rmjax.core.mesh import make_mesh
from rmjax.data.packing.plan import count_microbatches
from rmjax.data.packing.rows import fill_rows, pack
from rmjax.data.schema import Edge, Tree, packed_spec
from rmjax.evaluation.scoring import Scorer
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.attention import KERNELS, attend, make_mask, triton
from rmjax.models.decoder import RewardModel
from rmjax.training.objectives import make_objective
from rmjax.training.optimizer import make_optimizer, make_schedule
from rmjax.training.step import Trainer

# vocabulary, width, MLP width, layers, query heads, key/value heads, head dimension
SHAPES = {
    "tiny": (256, 64, 128, 2, 4, 2, 16),
    "smollm2": (49152, 576, 1536, 30, 9, 3, 64),  # SmolLM2 135M
    "1b": (128256, 2048, 8192, 16, 32, 8, 64),  # Llama 3.2 1B
    "8b": (128256, 4096, 14336, 4, 32, 8, 128),  # Llama 3.1 8B with 4 of its 32 layers
}
LEARNING_RATE = 1e-6


def decoder_config(shape: str) -> DecoderConfig:
    """Returns the decoder of a shape."""
    return DecoderConfig(*SHAPES[shape], 1e-5, 500000.0, None, False, False, 131072, 0.02)


def num_matmul_parameters(shape: str) -> int:
    """Returns the number of parameters of the layers' matrix products."""
    _, width, mlp, layers, heads, kv_heads, head_dim = SHAPES[shape]
    return layers * width * (2 * heads * head_dim + 2 * kv_heads * head_dim + 3 * mlp)


def attention_flops(shape: str, pairs: int) -> float:
    """Returns the forward and backward FLOPs of attention over `pairs` visible pairs of tokens."""
    _, _, _, layers, heads, _, head_dim = SHAPES[shape]
    return 12.0 * layers * heads * head_dim * pairs


def make_trees(shape: str, count: int, longest: int) -> list[Tree]:
    """Returns invented comparisons."""
    rng = np.random.default_rng(0)
    vocabulary = SHAPES[shape][0]
    prompts = np.clip(rng.lognormal(np.log(180), 1.0, count), 8, longest // 2).astype(int)
    responses = np.clip(rng.lognormal(np.log(250), 0.7, (count, 2)), 4, longest // 2).astype(int)
    draw = lambda n: rng.integers(10, vocabulary, n).astype(np.int32)
    return [
        Tree(draw(p), (draw(a), draw(b)), ((0, a - 1), (1, b - 1)), (Edge(0, 1),))
        for p, (a, b) in zip(prompts, responses, strict=True)
    ]


def conversations(tree: Tree) -> list[np.ndarray]:
    """Returns the tokens of both whole conversations, chosen first."""
    return [np.concatenate([tree.prefix, branch]) for branch in tree.branches]


class Rmjax:
    """rmjax's train step."""

    def __init__(self, flags: argparse.Namespace, batches: list[list[Tree]]):
        mesh = make_mesh(devices=jax.devices()[:1])
        jax.set_mesh(mesh)
        config = configs.default()
        config.optimizer.learning_rate, config.optimizer.schedule = LEARNING_RATE, "constant"
        model = RewardModel(
            decoder_config(flags.shape),
            HeadConfig(init=0.02),
            "bfloat16",
            "float32",
            flags.attention,
            flags.remat,
            scan_layers=flags.scan or None,
        )
        schedule = make_schedule(config.optimizer, 1)
        optimizer = make_optimizer(config.optimizer, schedule)
        trainer = Trainer(model, make_objective(config.objective), optimizer, schedule, 1.0, mesh)
        self._state = jax.jit(lambda key: trainer.init(model.init(key)), out_shardings=trainer.shardings())(
            jax.random.key(0)
        )
        self._flags = flags
        packed = [self._pack(batch) for batch in batches]
        microbatches = max(-(-len(rows) // flags.rows) for rows in packed)
        trees = max(len(row) for rows in packed for row in rows)
        spec = packed_spec(flags.rows, flags.row_length, 2 * trees, trees, 1)
        self._spec, self._microbatches = spec, microbatches
        start = time.perf_counter()
        self._step = trainer.compile_step(0).lower(self._state, *self._arrays([])).compile()
        memory = self._step.memory_analysis()
        arguments, temporaries = (size / 2**30 for size in (memory.argument_size_in_bytes, memory.temp_size_in_bytes))
        print(
            f"rmjax: compiled in {time.perf_counter() - start:.1f} s; arguments {arguments:.2f} GiB, temporaries "
            f"{temporaries:.2f} GiB; rows filled {statistics.mean(self._fill(rows) for rows in packed):.1%}",
            flush=True,
        )

    def run(self, batches: Iterator[list[Tree]], reply: Callable[[float], None]) -> None:
        """Takes one step per batch; the second one is profiled if --profile is given."""
        for number, batch in enumerate(batches):
            arrays = self._arrays(self._pack(batch))
            if profiled := self._flags.profile and number == 1:
                jax.profiler.start_trace(self._flags.profile)
            self._state, report = self._step(self._state, *arrays)
            if profiled:
                jax.block_until_ready(self._state)
                jax.profiler.stop_trace()
                print_profile(self._flags.profile)
            total, weight = jax.device_get(report["sums"]["loss/bradley_terry"])
            jax.block_until_ready(self._state)
            if number == 0 and (memory := jax.devices()[0].memory_stats()):
                print(f"rmjax: at most {memory['peak_bytes_in_use'] / 2**30:.2f} GiB in use", flush=True)
            reply(float(total / weight))

    def _pack(self, batch: list[Tree]) -> list[list[Tree]]:
        rows = pack([tree.length for tree in batch], self._flags.row_length)
        return [[batch[i] for i in row] for row in rows]

    def _fill(self, rows: list[list[Tree]]) -> float:
        return sum(tree.length for row in rows for tree in row) / (len(rows) * self._flags.row_length)

    def _arrays(self, rows: list[list[Tree]]):
        each = self._flags.rows
        used = np.array([sum(tree.length for tree in row) for row in rows], np.int64)
        starts = range(0, self._microbatches * each, each)
        filled = [fill_rows(rows[start : start + each], self._spec) for start in starts]
        return {name: np.stack([part[name] for part in filled]) for name in self._spec}, count_microbatches(
            used, 0, each
        )


def print_profile(directory: str) -> None:
    """Prints the GPU kernels of a trace with the most time, similar ones together."""
    seconds: dict[str, float] = {}
    counts: dict[str, int] = {}
    for path in pathlib.Path(directory).rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines if "/device:GPU" in plane.name else ():
                for event in line.events if line.name.startswith("Stream") else ():
                    name = re.sub(r"[._]\d+", "", event.name)[:60]
                    seconds[name] = seconds.get(name, 0.0) + event.duration_ns / 1e9
                    counts[name] = counts.get(name, 0) + 1
    total = sum(seconds.values())
    for name, value in sorted(seconds.items(), key=lambda item: -item[1])[:24]:
        print(f"profile {value * 1e3:8.1f} ms {value / total:6.1%} {counts[name]:6d} x {name}")
    print(f"profile {total * 1e3:8.1f} ms in all", flush=True)


def torch_model(shape: str):
    """Returns transformers' Llama classifier of a shape with random float32 parameters."""
    import torch
    import transformers

    vocabulary, width, mlp, layers, heads, kv_heads, head_dim = SHAPES[shape]
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=131072,
        num_labels=1,
        pad_token_id=0,
        attn_implementation="sdpa",
        use_cache=False,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return transformers.LlamaForSequenceClassification(config)


class Torch:
    """A loop with bfloat16 autocast; the conversations of a batch are sorted by length and padded in chunks."""

    def __init__(self, flags: argparse.Namespace, batches: list[list[Tree]]):
        import torch

        self._flags, self._model = flags, torch_model(flags.shape)
        self._device = self._model.device.type
        fused = self._device == "cuda"
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=fused)

    def run(self, batches: Iterator[list[Tree]], reply: Callable[[float], None]) -> None:
        """Takes one step per batch."""
        import torch

        for batch in batches:
            pairs = sorted((conversations(tree) for tree in batch), key=lambda pair: max(map(len, pair)))
            total = torch.zeros((), device=self._device)
            for start in range(0, len(pairs), self._flags.pairs):
                chunk = pairs[start : start + self._flags.pairs]
                ids = torch.from_numpy(pad([pair[side] for side in (0, 1) for pair in chunk])).to(self._device)
                with torch.autocast(self._device, torch.bfloat16):
                    logits = self._model(ids, attention_mask=(ids != 0).long()).logits[:, 0].float()
                margins = logits[: len(chunk)] - logits[len(chunk) :]
                loss = -torch.nn.functional.logsigmoid(margins).sum() / len(batch)
                loss.backward()
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()
            reply(total.item())


class Trl:
    """RewardTrainer.train() with its own collator, and a data loader that yields the given batches."""

    def __init__(self, flags: argparse.Namespace, batches: list[list[Tree]]):
        self._flags = flags

    def run(self, batches: Iterator[list[Tree]], reply: Callable[[float], None]) -> None:
        """Takes one step per batch, in parts of 8 comparisons."""
        import datasets
        import tokenizers
        import torch
        import transformers
        import trl

        losses: list[float] = []
        size = self._flags.batch
        parts = -(-size // 8)

        class Trainer(trl.RewardTrainer):
            """A trainer whose data loader yields the given batches."""

            def get_train_dataloader(self):
                def generate():
                    for batch in batches:
                        for start in range(0, len(batch), 8):
                            pairs = [conversations(tree) for tree in batch[start : start + 8]]
                            yield self.data_collator([{"chosen_ids": a, "rejected_ids": b} for a, b in pairs])
                        reply(float(torch.stack(losses).mean()))
                        losses.clear()

                class Loader:
                    def __iter__(self):
                        device = "cuda" if torch.cuda.is_available() else "cpu"
                        return (
                            {k: v.to(device) if hasattr(v, "to") else v for k, v in part.items()} for part in generate()
                        )

                    def __len__(self):
                        return parts * 10**4

                return Loader()

            def training_step(self, *args, **kwargs):
                loss = super().training_step(*args, **kwargs)
                losses.append(loss.detach() * parts)
                return loss

        vocabulary = {"[PAD]": 0, "[EOS]": 1, "a": 2}
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "a"))
        processing = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]"
        )
        with tempfile.TemporaryDirectory() as directory:
            arguments = trl.RewardConfig(
                directory,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                max_steps=10**4,
                bf16=True,
                use_cpu=not torch.cuda.is_available(),
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                per_device_train_batch_size=8,
                gradient_accumulation_steps=parts,
                logging_steps=10**6,
            )
            table = datasets.Dataset.from_dict({"chosen_ids": [[2, 2]] * size, "rejected_ids": [[2, 2]] * size})
            Trainer(
                model=torch_model(self._flags.shape), args=arguments, train_dataset=table, processing_class=processing
            ).train()


class RmjaxScore:
    """rmjax's scorer with bfloat16 parameters."""

    def __init__(self, flags: argparse.Namespace, batches: list[list[Tree]]):
        mesh = make_mesh(devices=jax.devices()[:1])
        jax.set_mesh(mesh)
        model = RewardModel(
            decoder_config(flags.shape),
            HeadConfig(init=0.02),
            "bfloat16",
            "bfloat16",
            flags.attention,
            scan_layers=flags.scan or None,
        )
        params = jax.jit(model.init)(jax.random.key(0))
        self._scorer = Scorer(model, params, mesh, flags.row_length, flags.rows)

    def run(self, batches: Iterator[list[Tree]], reply: Callable[[float], None]) -> None:
        """Scores each batch."""
        for batch in batches:
            rewards = self._scorer.score(batch)
            reply(float(np.mean([reward[0] - reward[1] for reward in rewards])))


class TorchScore:
    """The classifier in bfloat16; the conversations of a batch are sorted by length and padded in chunks."""

    def __init__(self, flags: argparse.Namespace, batches: list[list[Tree]]):
        import torch

        self._flags, self._model = flags, torch_model(flags.shape).to(torch.bfloat16).eval()

    def run(self, batches: Iterator[list[Tree]], reply: Callable[[float], None]) -> None:
        """Scores each batch."""
        import torch

        for batch in batches:
            sequences = [sequence for tree in batch for sequence in conversations(tree)]
            order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
            rewards = np.zeros(len(sequences))
            with torch.inference_mode():
                results = []
                for start in range(0, len(order), 2 * self._flags.pairs):
                    part = [sequences[i] for i in order[start : start + 2 * self._flags.pairs]]
                    ids = torch.from_numpy(pad(part)).to(self._model.device)
                    results.append(self._model(ids, attention_mask=(ids != 0).long()).logits[:, 0])
                rewards[order] = torch.cat(results).float().cpu().numpy()
            reply(float((rewards[::2] - rewards[1::2]).mean()))


def pad(sequences: list[np.ndarray]) -> np.ndarray:
    """Returns sequences padded with zeros to the longest one, int64 [B, T]."""
    ids = np.zeros((len(sequences), max(map(len, sequences))), np.int64)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    return ids


SIDES = {"train": {"rmjax": Rmjax, "torch": Torch, "trl": Trl}, "score": {"rmjax": RmjaxScore, "torch": TorchScore}}
REQUIRES = {"rmjax": (), "torch": ("torch", "transformers"), "trl": ("torch", "trl", "datasets")}


def serve(name: str, flags: argparse.Namespace, pipe) -> None:
    """Runs in the process of an implementation: a step for each index of a batch from the pipe."""
    batches = make_batches(flags)
    side = SIDES[flags.section][name](flags, batches)
    pipe.send(0.0)

    def receive() -> Iterator[list[Tree]]:
        while True:
            try:
                yield batches[pipe.recv()]
            except EOFError:
                os._exit(0)

    side.run(receive(), pipe.send)


def make_batches(flags: argparse.Namespace) -> list[list[Tree]]:
    """Returns the comparisons of each step."""
    trees = make_trees(flags.shape, flags.batch * flags.batches, flags.longest)
    return [trees[i * flags.batch : (i + 1) * flags.batch] for i in range(flags.batches)]


def compare(flags: argparse.Namespace) -> None:
    """Prints the times of the train steps, or of scoring a batch, and the medians of their ratios."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(flags.memory))
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # of batches of many shapes
    batches = make_batches(flags)
    parameters = num_matmul_parameters(flags.shape)
    context, sides = multiprocessing.get_context("spawn"), {}
    seconds: dict[str, list[float]] = {}
    for name in flags.sides.split(","):
        if name not in SIDES[flags.section]:
            continue
        if missing := [package for package in REQUIRES[name] if importlib.util.find_spec(package) is None]:
            print(f"{name}: left out, because {', '.join(missing)} is not installed")
            continue
        pipe, child = context.Pipe()
        process = context.Process(target=serve, args=(name, flags, child), daemon=True)
        start = time.perf_counter()
        process.start()
        child.close()
        try:
            pipe.recv()
            for number in range(flags.batches):  # warm-up with every shape
                pipe.send(number)
                first = pipe.recv()
        except (EOFError, ConnectionError):
            print(f"{name}: ended, see its error above", flush=True)
            continue
        print(f"{name}: ready after {time.perf_counter() - start:.1f} s; loss {first:.4f}", flush=True)
        sides[name] = pipe
    for number in [*range(flags.batches)] * flags.repeats:
        for name, pipe in list(sides.items()):
            start = time.perf_counter()
            try:
                pipe.send(number)
                pipe.recv()
            except (EOFError, ConnectionError):
                print(f"{name}: ended, see its error above", flush=True)
                del sides[name]
                seconds.pop(name, None)
                continue
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    for name, times in seconds.items():
        shared = name == "rmjax"
        tokens, pairs = (np.mean([count(batch, shared) for batch in batches]) for count in (count_tokens, count_pairs))
        flops = (6.0 * parameters * tokens + attention_flops(flags.shape, pairs)) / (
            3 if flags.section == "score" else 1
        )
        median = statistics.median(times)
        print(
            f"{name}: {median:.3f} s a batch of {flags.batch} comparisons ({min(times):.3f} to {max(times):.3f}); "
            f"{flags.batch / median:.1f} comparisons/s; {tokens / median:,.0f} tokens/s; "
            f"{flops / median / 1e12:.0f} TFLOP/s; MFU {flops / median / (flags.peak * 1e12):.1%}",
            flush=True,
        )
    for name in list(seconds)[1:]:
        first = next(iter(seconds))
        ratio = statistics.median(b / a for a, b in zip(seconds[first], seconds[name], strict=True))
        print(f"{name} / {first}: median ratio of times {ratio:.2f}")


def count_tokens(batch: list[Tree], shared: bool) -> int:
    """Returns the tokens of a batch; `shared`: prompts once."""
    return sum(tree.length if shared else sum(map(len, conversations(tree))) for tree in batch)


def count_pairs(batch: list[Tree], shared: bool) -> float:
    """Returns the visible pairs of tokens of a batch; `shared`: prompts once."""
    triangle = lambda n: n * (n + 1) / 2
    whole = sum(triangle(len(sequence)) for tree in batch for sequence in conversations(tree))
    return whole - (sum(triangle(len(tree.prefix)) for tree in batch) if shared else 0)


def tree_rows(rows: int, length: int, causal: bool) -> tuple[jax.Array, jax.Array]:
    """Returns group and branch, int32 [rows, length], of packed comparisons, or of one causal sequence a row."""
    if causal:
        return jnp.ones((rows, length), jnp.int32), jnp.zeros((rows, length), jnp.int32)
    trees = make_trees("tiny", 64 * rows * length // 1024, min(2048, length))
    trees = [tree for tree in trees if tree.length <= length]
    packed = pack([tree.length for tree in trees], length)[:rows]
    spec = packed_spec(rows, length, 512, 256, 1)
    filled = fill_rows([[trees[i] for i in row] for row in packed], spec)
    return jnp.asarray(filled["group"]), jnp.asarray(filled["branch"])


def library_kernels() -> dict[str, Callable]:
    """Returns attend(q, k, v, mask bool [B, T, T]) of the installed libraries."""
    found = {
        "jax xla": lambda q, k, v, m: jax.nn.dot_product_attention(q, k, v, mask=m[:, None], implementation="xla"),
        "jax cudnn": lambda q, k, v, m: jax.nn.dot_product_attention(q, k, v, mask=m[:, None], implementation="cudnn"),
    }
    if importlib.util.find_spec("tokamax"):
        from absl import flags as absl_flags

        absl_flags.FLAGS(["bench_gpu"])  # tokamax reads absl flags
        import tokamax

        for name in ("triton", "mosaic"):
            found[f"tokamax {name}"] = lambda q, k, v, m, name=name: tokamax.dot_product_attention(
                q, k, v, mask=m[:, None], is_causal=True, implementation=name
            )
    return found


def kernel_names(flags: argparse.Namespace) -> list[str]:
    """Returns the kernels of --kernels; without the flag, all."""
    return flags.kernels.split(",") if flags.kernels else [*KERNELS, *library_kernels()]


def draw_arrays(rows: int, length: int, heads: int, kv_heads: int, head_dim: int) -> list[jax.Array]:
    """Returns random queries, keys, values and gradients of the output, float32 [rows, length, heads, head_dim]."""
    keys, counts = jax.random.split(jax.random.key(1), 4), (heads, kv_heads, kv_heads, heads)
    return [jax.random.normal(key, (rows, length, n, head_dim)) for key, n in zip(keys, counts, strict=True)]


def kernel_function(name: str, group, branch, window: int = 0, softcap: float = 0.0) -> Callable:
    """Returns the jitted kernel of a name and its value and gradients; a library's has neither window nor soft cap."""
    from rmjax.models.attention.mask import visible

    position = jnp.broadcast_to(jnp.arange(group.shape[1], dtype=jnp.int32), group.shape)  # without windows: unused
    tokens = make_mask(group, branch, position, KERNELS["dense"]).tokens
    valid = (group > 0)[..., None, None]
    if name in KERNELS:
        mask = jax.jit(lambda: make_mask(group, branch, position, KERNELS[name], window))()
        run = lambda q, k, v: attend(q, k, v, mask, None, softcap)
    else:
        # A query without a visible key gives NaN in some libraries: it sees itself here.
        seen = jax.jit(lambda: visible(tokens, tokens) | jnp.eye(group.shape[1], dtype=bool))()
        run = lambda q, k, v: library_kernels()[name](q, k, v, seen)

    def both(q, k, v, do):
        out, vjp = jax.vjp(lambda q, k, v: jnp.where(valid, run(q, k, v), 0), q, k, v)
        return out, *vjp(do)

    return jax.jit(lambda q, k, v, do: jnp.where(valid, run(q, k, v), 0)), jax.jit(both)


def check(flags: argparse.Namespace) -> None:
    """Prints the largest relative error of each kernel against dense attention in float32."""
    cases = [
        (2, 1024, 8, 2, 64, 0, 0.0),
        (2, 1152, 9, 3, 64, 0, 0.0),
        (1, 2048, 8, 8, 128, 0, 0.0),
        (1, 1024, 4, 1, 256, 256, 50.0),
    ]
    if flags.shape == "tiny":
        cases = [(1, 256, 4, 2, 16, 0, 0.0), (1, 256, 4, 2, 16, 64, 20.0)]
    for rows, length, heads, kv_heads, head_dim, window, softcap in cases:
        names = [name for name in kernel_names(flags) if name in KERNELS or not window]
        group, branch = tree_rows(rows, length, False)
        exact = draw_arrays(rows, length, heads, kv_heads, head_dim)
        with jax.default_matmul_precision("highest"):
            reference = kernel_function("dense", group, branch, window, softcap)[1](*exact)
        for dtype in ("float32", "bfloat16"):
            for name in names:
                try:
                    both = kernel_function(name, group, branch, window, softcap)[1]
                    result = both(*(x.astype(dtype) for x in exact))
                    errors = [
                        float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
                        for a, b in zip(result, reference, strict=True)
                    ]
                    text = " ".join(f"{error:.1e}" for error in errors)
                except Exception as error:  # a library that does not support the case
                    text = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
                case = f"T={length} N={heads} H={kv_heads} P={head_dim} window={window} softcap={softcap:g}"
                print(f"check {case} {dtype} {name}: out, dq, dk, dv {text}", flush=True)


def kernels(flags: argparse.Namespace) -> None:
    """Prints the times of forward, and of forward and backward, of each kernel."""
    names = kernel_names(flags)
    cases = [(4, 4096, 32, 8, 64, False), (4, 4096, 32, 8, 64, True), (2, 8192, 32, 8, 128, False)]
    if flags.shape == "tiny":
        cases = [(1, 256, 4, 2, 16, False)]
    for rows, length, heads, kv_heads, head_dim, causal in cases:
        group, branch = tree_rows(rows, length, causal)
        arrays = [x.astype(jnp.bfloat16) for x in draw_arrays(rows, length, heads, kv_heads, head_dim)]
        kind = "causal" if causal else "packed trees"
        for name in names:
            if name == "blocks":
                continue  # written for CPU: minutes on a GPU
            try:
                forward, both = kernel_function(name, group, branch)
                times = [time_call(functools.partial(f, *arrays)) for f in (forward, both)]
                text = f"{times[0] * 1e3:.2f} ms forward, {times[1] * 1e3:.2f} ms with backward"
            except Exception as error:
                text = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
            print(f"kernels {rows} x {length} {kind}, N={heads} H={kv_heads} P={head_dim}, {name}: {text}", flush=True)


def tune(flags: argparse.Namespace) -> None:
    """Prints the times of the passes of the kernel `triton` with several block sizes and launch parameters."""
    names = {"forward": "_FORWARD", "dq": "_BACKWARD_QUERIES", "dkv": "_BACKWARD_KEYS"}
    sizes = [(128, 64), (64, 64), (64, 128), (128, 128)]
    cases = [(4, 4096, 32, 8, 64), (2, 4096, 32, 8, 128)]
    if flags.shape == "tiny":
        sizes, cases = [(64, 32)], [(1, 256, 4, 2, 16)]
    for rows, length, heads, kv_heads, head_dim in cases:
        group, branch = tree_rows(rows, length, False)
        arrays = [x.astype(jnp.bfloat16) for x in draw_arrays(rows, length, heads, kv_heads, head_dim)]
        for label, name in names.items():
            chosen, results = getattr(triton, name), []
            for outer, inner in sizes:
                for warps, stages in ((4, 2), (4, 3), (8, 3)):
                    setattr(triton, name, chosen._replace(outer=outer, inner=inner, warps=warps, stages=stages))
                    jax.clear_caches()
                    try:
                        function = kernel_function("triton", group, branch)[0 if label == "forward" else 1]
                        seconds = time_call(functools.partial(function, *arrays), 5)
                        results.append((seconds, outer, inner, warps, stages))
                    except Exception:  # too much shared memory
                        continue
            setattr(triton, name, chosen)
            best = "; ".join(f"{s * 1e3:.2f} ms {rest}" for s, *rest in sorted(results)[:5])
            print(f"tune P={head_dim} {label} (backward: with the others as set): {best}", flush=True)


def time_call(function: Callable, repeats: int = 10) -> float:
    """Returns the median seconds of a call, over groups of 3 calls."""
    jax.block_until_ready(function())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready([function() for _ in range(3)])
        seconds.append((time.perf_counter() - start) / 3)
    return statistics.median(seconds)


def main() -> None:
    """Runs a section of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=["check", "kernels", "tune", *SIDES])
    parser.add_argument("--shape", default="1b", choices=SHAPES)
    parser.add_argument("--sides", default="rmjax,torch,trl", help="implementations, separated by commas")
    parser.add_argument("--kernels", default="", help="kernels, separated by commas; empty: all")
    parser.add_argument("--attention", default="auto", help="rmjax's kernel in `train`")
    parser.add_argument(
        "--profile", default="", help="directory for the trace of a step of rmjax; its kernels are printed"
    )
    parser.add_argument("--scan", action="store_true", help="rmjax: run the layers in a loop (model.scan_layers=True)")
    parser.add_argument("--remat", default="small", help="rmjax's rematerialization in `train`")
    parser.add_argument("--batch", type=int, default=128, help="comparisons per step")
    parser.add_argument("--batches", type=int, default=3, help="different batches")
    parser.add_argument("--repeats", type=int, default=2, help="passes over the batches")
    parser.add_argument("--row_length", type=int, default=4096, help="tokens of rmjax's rows")
    parser.add_argument("--rows", type=int, default=4, help="rows of rmjax's microbatches")
    parser.add_argument("--pairs", type=int, default=8, help="comparisons of torch's microbatches")
    parser.add_argument("--longest", type=int, default=2048, help="tokens of the longest conversation")
    parser.add_argument("--memory", type=float, default=0.45, help="share of the card that rmjax's process reserves")
    parser.add_argument("--peak", type=float, default=989.0, help="peak TFLOP/s of the card in bfloat16 (H100 SXM)")
    flags = parser.parse_args()
    if flags.section not in SIDES:
        device = jax.devices()[0]
        print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}", flush=True)
    {"check": check, "kernels": kernels, "tune": tune}.get(flags.section, compare)(flags)


if __name__ == "__main__":
    main()
