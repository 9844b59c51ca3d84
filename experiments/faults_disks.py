"""Full disks: programs write to a small file system that has room for more and more of what they write."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

from faults_common import Counts, Program, new_counts, read_metrics, read_model, tiny_config, write_config, write_pairs

from rmjax.training.experiment import train

_SIZE = 64 << 20  # of the file system, in bytes
_PAGE = 4096  # its unit
_GROWTH = 1.4  # ratio of the free space of two attempts
_FILLER = "filler"
_JUNK = re.compile(r"\.part$|tmp|/\.[^/]*\.lock$|/\.[^/]*-")  # temporary files and directories, and locks


@dataclasses.dataclass(frozen=True)
class _Target:
    """A program that writes to the file system.

    Attributes:
      arguments: module and flags.
      results: returns what the program has written, to be compared.
      environment: further variables.
      keeps: after an error it may leave incomplete results, with which the same command goes on.
      optional: the program goes on if it cannot write, and reports it.
    """

    arguments: list[str]
    results: Callable[[], object]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    keeps: bool = False
    optional: bool = False


def inject_full_disks(directory: pathlib.Path) -> Counts:
    """Lets the disk become full at each write of the programs; counts the outcomes by program."""
    if sys.platform != "linux" or os.geteuid():
        raise SystemExit("--disks mounts a tmpfs: it needs Linux, and root")
    directory.mkdir()
    counts = new_counts()
    with _mounted(directory / "disk") as disk:
        for name, target in _targets(directory, disk).items():
            _fill(name, target, disk, directory / f"{name.replace(' ', '-')}.txt", counts)
            print(f"{name}: {dict(counts[name])}", flush=True)
    return counts


def _targets(directory: pathlib.Path, disk: pathlib.Path) -> dict[str, _Target]:
    pairs, run = write_pairs(directory / "pairs.jsonl", 400), directory / "run"
    config = tiny_config(6, 3)
    train(config, run, log=lambda line: None, progress=False)
    config.data.train, config.data.validation = (str(pairs),), (str(write_pairs(directory / "other.jsonl", 40)),)
    file = write_config(config, directory / "config_file.py")
    trained = lambda path: (read_metrics(path), read_model(path))
    contents = lambda path: {
        child.relative_to(path).as_posix(): child.read_bytes() for child in path.rglob("*") if child.is_file()
    }
    data = [f"--model={run}", f"--data={pairs}"]
    return {
        "train": _Target(
            ["rmjax.train", f"--config={file}", f"--workdir={disk}/run"], lambda: trained(disk / "run"), keeps=True
        ),
        "caches of train": _Target(
            ["rmjax.train", f"--config={file}", f"--workdir={directory}/elsewhere"],
            lambda: trained(directory / "elsewhere"),
            {"RMJAX_CACHE": f"{disk}/cache", "JAX_COMPILATION_CACHE_DIR": f"{disk}/jax"},
            optional=True,
        ),
        "evaluate": _Target(
            ["rmjax.evaluate", *data, f"--output={disk}/evaluation"], lambda: contents(disk / "evaluation")
        ),
        "score": _Target(
            ["rmjax.score", f"--model={run}", f"--input={pairs}", f"--output={disk}/scores.jsonl"],
            lambda: (disk / "scores.jsonl").read_bytes(),
            keeps=True,
        ),
        "export": _Target(
            ["rmjax.export", f"--workdir={run}", f"--output={disk}/artifact"], lambda: contents(disk / "artifact")
        ),
    }


@contextlib.contextmanager
def _mounted(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the directory of a new file system."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "faults", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def _fill(name: str, target: _Target, disk: pathlib.Path, log: pathlib.Path, counts: Counts) -> None:
    """Runs a program with more and more free space, until it completes without a fault."""
    elsewhere = log.parent / "elsewhere"  # of a target whose results are not on the disk

    def start() -> Program:
        program = Program(target.arguments, log, environment=target.environment)
        program.wait()
        return program

    def clear() -> None:
        for path in (*disk.iterdir(), elsewhere):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    if (program := start()).process.returncode:
        raise SystemExit(f"{name} failed without a fault:\n{program.output}")
    expected, free = target.results(), 0.0
    while True:
        clear()
        _leave_free(disk, int(free) * _PAGE)
        program = start()
        outcome = _outcome(program, target, disk)
        left = [path for path in _files(disk) if _JUNK.search(path) or not (target.keeps or target.optional)]
        if program.process.returncode and left:
            outcome = f"lost: {left} was left"
        (disk / _FILLER).unlink()
        if program.process.returncode and (program := start()).process.returncode:
            outcome = "lost: the same command does not go on"
        elif target.results() != expected:
            outcome = "wrong: other results"
        elif left := [path for path in _files(disk) if _JUNK.search(path)]:
            outcome = f"lost: {left} was left at the end"
        counts[name][outcome.partition(":")[0]] += 1
        if ":" in outcome:
            print(f"{name}, {int(free)} pages free: {outcome}\n{log.read_text()[-3000:]}", flush=True)
        if outcome == "completed":
            clear()
            return
        free = max(free + 1, free * _GROWTH)


def _files(disk: pathlib.Path) -> list[str]:
    names = (f"/{path.relative_to(disk)}" for path in disk.rglob("*"))
    return [name for name in names if name != f"/{_FILLER}"]


def _leave_free(disk: pathlib.Path, size: int) -> None:
    with open(disk / _FILLER, "wb") as file:
        file.write(b"\0" * (os.statvfs(disk).f_bavail * _PAGE - size))


def _outcome(program: Program, target: _Target, disk: pathlib.Path) -> str:
    """Returns `found`, `completed`, or what is wrong with the end of a program on a full disk."""
    output, lines = program.output, program.error_lines()
    if "Traceback" in output:
        return "traceback: see below"
    full = "the disk is full" in output or "No space left" in output
    if not program.process.returncode:
        return "found" if target.optional and full else "completed"
    if target.optional:
        return "lost: the program ended"
    named = len(lines) == 1 and str(disk) in lines[0] and "the disk is full; free space" in lines[0]
    return "found" if named else f"lost: the lines are {lines}"
