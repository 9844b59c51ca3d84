"""What the modules of faults.py share: a tiny run, its results, processes, and tables of outcomes."""

import collections
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np

from rmjax.core import config as configs
from rmjax.core.pytree import flatten
from rmjax.evaluation.pipeline import load_pipeline

TIMINGS = ("tokens_per_second", "comparisons_per_second", "step_time")
TIMEOUT = 600  # seconds for one start of a program
BAD = ("wrong", "traceback", "lost")  # outcomes that must not occur
Counts = dict[str, collections.Counter]


def new_counts() -> Counts:
    """Returns counts of outcomes by target, all 0."""
    return collections.defaultdict(collections.Counter)


def tiny_config(steps: int, every: int) -> configs.Config:
    """Returns a configuration that trains in seconds on the built-in data, with frozen parameters."""
    config = configs.default()
    config.model.update(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2)
    config.data.update(synthetic_train=200, synthetic_validation=40)
    config.optimizer.warmup_steps = 2
    config.train.update(steps=steps, batch_size=16, rows_per_device=2, trainable="^head/|layers/")
    config.evaluation.every = every
    return config


def write_config(config: configs.Config, path: pathlib.Path) -> pathlib.Path:
    """Writes a configuration file that gives `config`; returns its path."""
    path.write_text(
        "import json\nfrom rmjax.core import config as configs\n\n\ndef get_config():\n    config = configs.default()\n"
        f"    config.update(json.loads({config.to_json()!r}))\n    return config\n"
    )
    return path


def write_pairs(path: pathlib.Path, count: int) -> pathlib.Path:
    """Writes comparisons of numbers as JSON lines; returns the path."""
    records = ({"prompt": f"{n} + 1 =", "chosen": f" {n + 1}", "rejected": f" {n + 2}"} for n in range(count))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read_metrics(workdir: pathlib.Path) -> list[dict]:
    """Returns the lines of metrics.jsonl without times."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]


def read_model(path: pathlib.Path) -> dict[str, object]:
    """Returns all that a model's directory determines: the bits of its parameters, tokenizer, metadata, options."""
    pipeline = load_pipeline(str(path))
    params = flatten(jax.device_get(pipeline.scorer.params))
    return {name: np.asarray(leaf).tobytes() for name, leaf in params.items()} | {
        "model": repr(pipeline.scorer.model),
        "tokenizer": pipeline.tokenizer.fingerprint,
        "options": repr((pipeline.options, pipeline.max_length)),
        "metadata": json.dumps(pipeline.metadata, sort_keys=True),
    }


def free_address() -> str:
    """Returns HOST:PORT of a free port of the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


class Program:
    """A program that runs in a process of its own.

    Args:
      arguments: module and flags, after `python -m`.
      log: the file to which standard output and errors are appended.
      peer: (address, number of processes, index) of a process of several.
      environment: further variables.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        log: pathlib.Path,
        peer: tuple[str, int, int] | None = None,
        environment: dict[str, str] | None = None,
    ):
        variables = os.environ | {"JAX_NUM_CPU_DEVICES": "1"} | (environment or {})
        if peer is not None and peer[1] > 1:
            names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
            variables |= dict(zip(names, map(str, peer), strict=True))
            variables |= {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
        self.log, self._begin = log, log.stat().st_size if log.exists() else 0
        with open(log, "a") as file:
            command = [sys.executable, "-m", *arguments]
            self.process = subprocess.Popen(command, env=variables, stdout=file, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        """What this program has printed."""
        return self.log.read_bytes()[self._begin :].decode(errors="replace")

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def wait(self, seconds: float = TIMEOUT) -> int:
        """Returns the exit status; kills the program after `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.process.returncode

    def kill(self) -> None:
        """Kills the program with SIGKILL and waits for its end."""
        if self.running:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def error_lines(self) -> list[str]:
        """Returns the lines that start with `error:`."""
        return re.findall(r"^error: .*", self.output, re.MULTILINE)


def start_training(
    config: pathlib.Path, workdir: pathlib.Path, processes: int, environment: dict[str, str] | None = None
) -> list[Program]:
    """Starts `rmjax.train` in one or several processes, connected over the loopback interface; logs are beside it."""
    arguments, address = ["rmjax.train", f"--config={config}", f"--workdir={workdir}"], free_address()
    logs = [workdir.with_name(f"{workdir.name}-{index}.txt") for index in range(processes)]
    return [Program(arguments, log, (address, processes, index), environment) for index, log in enumerate(logs)]


def wait_for_metrics(workdir: pathlib.Path, text: str, programs: Sequence[Program]) -> None:
    """Waits until metrics.jsonl holds a text; ends the script if one of the run's programs ends before."""
    deadline, metrics = time.monotonic() + TIMEOUT, workdir / "metrics.jsonl"
    while not (metrics.exists() and text in metrics.read_text()):
        if time.monotonic() > deadline or not all(program.running for program in programs):
            ended = "\n".join(program.output[-2000:] for program in programs)
            raise SystemExit(f"the run ended before {text} was in {metrics}:\n{ended}")
        time.sleep(0.02)


def print_table(title: str, counts: Counts) -> None:
    """Prints a line per kind of target, with the number of each outcome."""
    outcomes = sorted({outcome for counter in counts.values() for outcome in counter})
    rows = [
        (name, sum(counter.values()), *(counter[outcome] for outcome in outcomes)) for name, counter in counts.items()
    ]
    total = ("all", *(sum(row[i] for row in rows) for i in range(1, len(outcomes) + 2)))
    width = max(14, *map(len, outcomes)) if outcomes else 14
    print(f"\n{title}")
    for row in [("", "injected", *outcomes), *sorted(rows), total]:
        print("  ".join(f"{cell!s:<58}" if i == 0 else f"{cell!s:>{width}}" for i, cell in enumerate(row)))
