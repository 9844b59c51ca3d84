"""A run that is killed or stopped, and resumed by another number of processes on another mesh."""

import pathlib
import random
import re
import signal
import time

from faults_common import (
    Counts,
    Program,
    new_counts,
    read_metrics,
    start_training,
    tiny_config,
    wait_for_metrics,
    write_config,
)

STEPS = 120
COUNTS = (4, 2, 1, 2, 4, 1)  # processes of the successive starts; a device each, parameters sharded over all (fsdp)
TOLERANCE = 1e-5  # of a loss: packing and sums depend on the mesh
GRACE_SECONDS = 30.0  # from SIGTERM to the end of all processes, a checkpoint saved; Kubernetes' and Spot's default


def inject_rescaling(seed: int, directory: pathlib.Path) -> Counts:
    """Kills runs with SIGKILL or stops them with SIGTERM, and resumes them with another number of processes."""
    rng = random.Random(seed)
    directory.mkdir()
    config = tiny_config(STEPS, 5)
    config.mesh.data, config.mesh.fsdp = 1, -1
    config_file = write_config(config, directory / "config_file.py")
    whole, counts = directory / "whole", new_counts()
    if any(program.wait() for program in start_training(config_file, whole, 1)):
        raise SystemExit(f"the run without faults failed; see {directory}")
    for number in (signal.SIGKILL, signal.SIGTERM):
        workdir = directory / number.name
        for index, processes in enumerate(COUNTS):
            last = index == len(COUNTS) - 1
            target = f"{number.name}, then {COUNTS[index - 1]} to {processes} processes" if index else number.name
            programs, before = start_training(config_file, workdir, processes), _steps(workdir)
            if last:
                failed = any([program.wait() for program in programs])
            else:
                step = (index + 1) * STEPS // len(COUNTS) - rng.randrange(10)
                wait_for_metrics(workdir, f'"step": {step}, "split": "train"', programs)
                failed = _end(programs, number, workdir, rng)
            resumed = not index or f"resuming {workdir} at step {max(before, default=0)} " in programs[0].output
            counts[target]["lost" if failed or not resumed else "continued" if index else "ended"] += 1
            if failed or not resumed:
                print(f"{target}:", *(program.output[-2000:] for program in programs), sep="\n")
        difference = _difference(whole, workdir)
        print(f"{number.name}: losses differ by at most {difference:.1e} from those of one process", flush=True)
        if not difference <= TOLERANCE:
            counts[number.name]["wrong"] += 1
    return counts


def _end(programs: list[Program], number: signal.Signals, workdir: pathlib.Path, rng: random.Random) -> bool:
    """Ends the processes of a run by a signal; returns whether it was not as it should."""
    if number == signal.SIGKILL:
        for program in programs:
            program.kill()
        return False
    begin = time.monotonic()
    rng.choice(programs).process.send_signal(number)  # a preempted host; the others are told
    statuses = [program.wait(2 * GRACE_SECONDS) for program in programs]
    seconds = time.monotonic() - begin
    stopped = re.findall(r"stopped at step (\d+)", programs[0].output)
    print(f"{number.name} to one of {len(programs)}: all ended after {seconds:.1f} s, at step {stopped}", flush=True)
    saved = bool(stopped) and int(stopped[-1]) in _steps(workdir)
    return set(statuses) != {128 + number} or not saved or seconds > GRACE_SECONDS


def _steps(workdir: pathlib.Path) -> list[int]:
    return [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]


def _difference(whole: pathlib.Path, workdir: pathlib.Path) -> float:
    """Returns the greatest difference of a step's loss; infinite if the steps are not the same."""
    first, second = (
        {line["step"]: line["loss"] for line in read_metrics(path) if line["split"] == "train"}
        for path in (whole, workdir)
    )
    if first.keys() != second.keys():
        return float("inf")
    return max(abs(loss - second[step]) for step, loss in first.items())
