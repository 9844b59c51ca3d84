"""Flipped bits: of random files of a workdir and its artifact, which are then loaded and trained on."""

import functools
import pathlib
import random
import shutil
import warnings

from faults_common import Counts, new_counts, read_metrics, read_model, tiny_config

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.core.state_files import StateWarning
from rmjax.training.experiment import train
from rmjax.training.export import export

STEPS = 6


def flip(path: pathlib.Path, rng: random.Random) -> str:
    """Flips a random bit of a file; returns where."""
    content = bytearray(path.read_bytes())
    position, bit = rng.randrange(len(content)), rng.randrange(8)
    content[position] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {position:,} of {len(content):,}"


def kind_of(path: pathlib.Path) -> str:
    """Returns the path of a file in a workdir, without the parts that differ between checkpoints and runs."""
    latest = lambda step: "LATEST" if int(step) == STEPS else "EARLIER"
    parts = [latest(part) if part.isdigit() else part for part in path.parts]
    if "d" in parts[:-1]:
        parts[-1] = "*"
    return "/".join(["tensorboard/*"] if parts[0] == "tensorboard" else parts)


def inject_flips(count: int, seed: int, directory: pathlib.Path) -> Counts:
    """Flips bits in copies of a workdir, loads each, and counts the outcomes by file."""
    rng, config = random.Random(seed), tiny_config(STEPS, 3)
    config.mesh.data = 1
    whole, copy = directory / "whole", directory / "copy"
    train(config, whole, log=lambda line: None, progress=False)
    export(whole, whole / "artifact")
    expected = {"artifact": read_model(whole / "artifact"), "": read_model(whole)}
    expected_metrics = read_metrics(whole)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.stat().st_size)
    counts = new_counts()
    for number in range(count):
        # Half of the flips are spread over files, half over bytes.
        weights = None if number % 2 else [(whole / file).stat().st_size for file in files]
        file = rng.choices(files, weights)[0]
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        where = flip(copy / file, rng)
        read = {name: functools.partial(_same_model, copy / name, expected[name]) for name in expected}
        # Damaged lines of metrics.jsonl are kept, after a warning.
        lines = None if file.name == "metrics.jsonl" else expected_metrics
        resume = functools.partial(_same_run, config, copy, lines, expected[""])
        outcomes = {*map(_attempt, read.values()), _attempt(resume, exact=True)}
        outcome = next(o for o in ("wrong", "traceback", "error", "warning", "without effect") if o in outcomes)
        counts[kind_of(file)][outcome] += 1
        if outcome in ("wrong", "traceback"):
            print(f"{outcome}: {file}, {where}", flush=True)
    return counts


def _same_model(path: pathlib.Path, expected: dict[str, object]) -> bool:
    return read_model(path) == expected


def _same_run(
    config: configs.Config, workdir: pathlib.Path, lines: list[dict] | None, model: dict[str, object]
) -> bool:
    """Completes a run; returns whether its metrics and its model are as expected."""
    train(config, workdir, log=lambda line: None, progress=False)
    return lines in (None, read_metrics(workdir)) and read_model(workdir) == model


def _attempt(read, exact: bool = False) -> str:
    """Returns the outcome of `read()`, which returns whether its result is as it was without a fault.

    Args:
      exact: the result must be the same even after a warning.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            same = read()
        except InputError:
            return "error"
        except Exception as error:
            print(f"{type(error).__name__}: {str(error)[:300]}")
            return "traceback"
    warned = any(issubclass(warning.category, StateWarning) for warning in caught)
    if same or (warned and not exact):
        return "warning" if warned else "without effect"
    return "wrong"
