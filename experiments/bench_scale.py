"""Costs of scale: devices, processes, compilation, start, checkpoints and the data loader.

    JAX_PLATFORMS=cpu python experiments/bench_scale.py [--parts=devices,processes,compile,checkpoints]
    python experiments/bench_scale.py --parts=compile --topology=v5p:2x2x4    # with the extra [tpu]

* devices: the step on 1 and 8 simulated devices of the same cores, in turn, with the same rows and float32.
* processes: whole runs of `rmjax.train` in 1 and 2 processes (2 and 1 devices each), in turn: start to the first step,
  and the median step.
* compile: seconds to trace and to compile the step of Llama-shaped models of 1B, 8B and 70B parameters, without their
  weights, and of a quarter of their layers: with `lax.scan` they do not depend on the depth.
* checkpoints: bytes per second of a save and a restore, the steps while a save is written beside the others, and the
  loader's work on a step as a share of the step.

Prints medians and the setup. Times are wall clock: nothing else should be running.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from faults_common import start_training, wait_for_metrics, write_config

from rmjax.core import config as configs
from rmjax.core.chips import topology_devices
from rmjax.core.mesh import AXES, make_mesh, row_shards
from rmjax.data.packing.pipeline import make_iterator, materialize
from rmjax.data.packing.plan import choose_row_length, short_row_length, training_plan
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models.workdir import Workdir
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.compilation import StepShape, compile_step, make_trainer
from rmjax.training.step import local_rows, shard_batch

SHAPES = {  # hidden, mlp, layers, query heads, key/value heads of Llama 3.2 1B, 3.1 8B and 3.1 70B
    "1B": (2048, 8192, 16, 32, 8),
    "8B": (4096, 14336, 32, 32, 8),
    "70B": (8192, 28672, 80, 64, 8),
}
VOCABULARY = 128256


def medium(rows: int) -> configs.Config:
    """Returns a configuration of a model of 26 million parameters on the built-in data."""
    config = configs.default()
    config.model.update(hidden_size=512, intermediate_size=1536, num_layers=8, num_heads=8, num_kv_heads=8)
    config.data.update(synthetic_train=4000, synthetic_validation=64)
    config.train.update(steps=40, batch_size=64, rows_per_device=rows)
    config.evaluation.every = 40
    config.mesh.data = 1
    return config


class Steps:
    """The train step of a configuration on its mesh, with its data loader."""

    def __init__(self, config: configs.Config, devices: Sequence[jax.Device]):
        tokenizer = Tokenizer.load("")
        options = DatasetOptions(max_length=config.data.max_length)
        dataset, _ = load_dataset(
            "synthetic", tokenizer, options, split="train", synthetic_size=config.data.synthetic_train, progress=False
        )
        self.dataset = dataset.with_attributes(("reward",))
        mesh = make_mesh([config.mesh[axis] for axis in AXES], devices)
        rows, lengths = config.train.rows_per_device * row_shards(mesh), self.dataset.lengths
        length = choose_row_length(lengths, config.train.batch_size, rows, short_microbatches=True)
        self.plan = training_plan(
            lengths,
            self.dataset.readout_counts,
            self.dataset.edge_counts,
            batch_size=config.train.batch_size,
            steps=config.train.steps,
            epochs=0.0,
            row_length=length,
            short_length=short_row_length(length),
            microbatch_rows=rows,
            seed=0,
        )
        self.trainer, self.rows = make_trainer(config, mesh, len(tokenizer)), local_rows(mesh, rows)
        self._index = 0
        begin = time.perf_counter()
        with jax.set_mesh(mesh):
            make = lambda: self.trainer.init(self.trainer.model.init(jax.random.key(0)))
            self.state = jax.jit(make, out_shardings=self.trainer.shardings())()
            self._step = self.trainer.compile_step(self.plan.short_length)
            self.run()
        self.first_seconds = time.perf_counter() - begin

    def run(self) -> float:
        """Takes the next step; returns its seconds."""
        item = materialize(self.dataset, self.plan, self._index % self.plan.num_steps, self.rows)
        self._index += 1
        begin = time.perf_counter()
        with jax.set_mesh(self.trainer.mesh):
            batch = shard_batch(self.trainer.mesh, item["batch"], self.plan.microbatch_rows, self.rows)
            self.state, outputs = self._step(self.state, batch, item["microbatches"])
            jax.block_until_ready((self.state, outputs))
        return time.perf_counter() - begin

    def loader_seconds(self) -> float:
        """Returns the seconds in which the data loader makes the arrays of a step."""
        steps = range(min(20, self.plan.num_steps))
        times = [timed(materialize, self.dataset, self.plan, step, self.rows) for step in steps]
        return statistics.median(times)


def timed(function: Callable[..., object], *arguments: object) -> float:
    """Returns the seconds of a call."""
    begin = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begin


def measure_devices(rounds: int) -> None:
    """Prints the step on one and on eight devices; a microbatch has eight rows on both."""
    one, sides = medium(8), {}
    sides["1 device"] = Steps(one, jax.devices())
    for name, mesh in (("data 8", (8, 1, 1, 1)), ("fsdp 8", (1, 8, 1, 1)), ("tensor 8", (1, 1, 8, 1))):
        config = medium(8 if name.startswith("tensor") else 1)
        config.mesh.update(dict(zip(AXES, mesh, strict=True)))
        sides[name] = Steps(config, jax.devices())
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            times[name].append(side.run())
    for name, found in times.items():
        ratios = [b / a for a, b in zip(times["1 device"], found, strict=True)]
        print(
            f"devices: {name:<9} step {statistics.median(found):.3f} s, {statistics.median(ratios):.2f} of one "
            f"device; with compilation the first took {sides[name].first_seconds:.1f} s",
            flush=True,
        )
    loader = sides["1 device"].loader_seconds()
    share = loader / statistics.median(times["1 device"])
    print(f"loader: {1e3 * loader:.2f} ms a step in one thread beside it, {share:.2%} of the step")


def measure_processes(rounds: int, directory: pathlib.Path) -> None:
    """Prints whole runs in one and in two processes; two devices in all, data parallel."""
    config = medium(4)
    config.mesh.data = -1
    file = write_config(config, directory / "config_file.py")
    cache = {"RMJAX_CACHE": str(directory / "cache"), "JAX_COMPILATION_CACHE_DIR": str(directory / "compiled")}
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for number in range(rounds + 1):
        for count, results in found.items():
            workdir, begin = directory / f"{count}-{number}", time.time()
            environment = cache | {"JAX_NUM_CPU_DEVICES": str(2 // count)}
            programs = start_training(file, workdir, count, environment)
            wait_for_metrics(workdir, '"split": "train"', programs)
            start = time.time() - begin
            if any([program.wait() for program in programs]):
                raise SystemExit(programs[0].output[-2000:])
            lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
            steps = [line["step_time"] for line in lines if line["split"] == "train"][2:]
            if number == 0:
                print(f"processes: {count}: {start:.1f} s to the first step, nothing compiled before", flush=True)
            else:
                results.append((start, statistics.median(steps)))
    for count, results in found.items():
        start, step = (statistics.median(values) for values in zip(*results, strict=True))
        print(f"processes: {count}: {start:.1f} s to the first step from the compilation cache, step {step:.3f} s")


def measure_compilation(topology: str, names: Sequence[str]) -> None:
    """Prints the seconds of tracing and of compilation; CPU devices: one row of 512 tokens, TPUs: of 4,096."""
    devices = topology_devices(topology) if topology else jax.devices()
    length = 4096 if topology else 512
    for name in names:
        hidden, mlp, layers, heads, kv_heads = SHAPES[name]
        for depth in (layers // 4, layers):
            config = configs.default()
            sizes = {"hidden_size": hidden, "intermediate_size": mlp, "num_heads": heads, "num_kv_heads": kv_heads}
            config.model.update(sizes | {"num_layers": depth, "dtype": "bfloat16", "remat": "layer"})
            trainer = make_trainer(config, make_mesh([1, len(devices), 1, 1], devices), VOCABULARY)
            begin = time.perf_counter()
            compile_step(trainer, 1, StepShape(length, 2, 16, 8))
            where = topology or f"{len(devices)} simulated devices"
            print(f"compile: {name}, {depth} layers, {where}: {time.perf_counter() - begin:.1f} s", flush=True)


def measure_checkpoints(rounds: int, directory: pathlib.Path) -> None:
    """Prints the rates of saving and restoring, and the steps around a save."""
    steps = Steps(medium(8), jax.devices()[:1])
    workdir = Workdir(directory / "workdir")
    workdir.path.mkdir(parents=True)
    workdir.metrics_file.touch()
    kept = {name: part for name, part in steps.state.items() if name != "frozen"}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(kept))
    alone, calls, around, saves, restores = [steps.run() for _ in range(8)], [], [], [], []
    for _ in range(rounds):
        steps.run()  # a checkpoint of a step is not written again
        with contextlib.closing(Checkpoints(workdir, 1, "")) as checkpoints:
            calls.append(timed(checkpoints.save, int(steps.state["step"]), steps.state, None))
            around.append([steps.run() for _ in range(4)])
        checkpoints = Checkpoints(workdir, 1, "")
        begin = time.perf_counter()
        checkpoints.save(int(steps.state["step"]), steps.state, None)
        checkpoints.close()  # waits until it is on disk
        saves.append(time.perf_counter() - begin)
        with contextlib.closing(Checkpoints(workdir, 1, "")) as checkpoints:
            iterator = make_iterator(steps.dataset, steps.plan, steps.rows)
            step, target = int(steps.state["step"]), steps.trainer.abstract_state()
            restores.append(timed(checkpoints.restore, step, target, iterator))
    rate = lambda seconds: f"{size / 2**20 / statistics.median(seconds):.0f} MiB/s"
    print(f"checkpoints: {size / 2**20:.0f} MiB; save {rate(saves)} with checksums, restore {rate(restores)}")
    print(
        f"checkpoints: a step alone {statistics.median(alone):.3f} s; the call of save {statistics.median(calls):.3f} s"
    )
    medians = ", ".join(f"{statistics.median(times):.3f}" for times in zip(*around, strict=True))
    print(f"checkpoints: the four steps after a call of save: {medians} s")


def main() -> None:
    """Runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="devices,processes,compile,checkpoints", help="separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", default="1B,8B,70B", help="of compile, separated by commas")
    parser.add_argument("--topology", default="", help="of compile; empty: 8 simulated devices")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    print(f"jax {jax.__version__}, numpy {np.__version__}, {os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="scale-") as temporary:
        directory = pathlib.Path(temporary)
        for part in options.parts.split(","):
            if part == "devices":
                measure_devices(options.rounds)
            elif part == "processes":
                measure_processes(options.rounds, directory)
            elif part == "compile":
                measure_compilation(options.topology, options.models.split(","))
            elif part == "checkpoints":
                measure_checkpoints(options.rounds, directory)
            else:
                sys.exit(f"--parts: {part!r} is not one of devices, processes, compile, checkpoints")


if __name__ == "__main__":
    main()
