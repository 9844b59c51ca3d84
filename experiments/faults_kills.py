"""Kills: a run is killed by SIGKILL again and again, every second time while a checkpoint is being written."""

import json
import pathlib
import random
import time

from faults_common import (
    TIMEOUT,
    Counts,
    new_counts,
    read_metrics,
    read_model,
    start_training,
    tiny_config,
    write_config,
)

STEPS = 300


def inject_kills(count: int, seed: int, processes: int, directory: pathlib.Path) -> Counts:
    """Kills a run `count` times, completes it, and compares it with a run that was not killed."""
    rng = random.Random(seed)
    directory.mkdir()
    config_file = write_config(tiny_config(STEPS, 5), directory / "config_file.py")
    whole, killed = directory / "whole", directory / "killed"
    if any([program.wait() for program in start_training(config_file, whole, processes)]):
        raise SystemExit(f"the run without kills failed; see {directory}")
    counts, target = new_counts(), f"{processes} process{'es' if processes > 1 else ''}"
    for number in range(count):
        started = start_training(config_file, killed, processes)
        # Kills are spread over the run; odd ones wait for the temporary directory of a checkpoint.
        step, while_saving = number * (STEPS - 20) // count + rng.randrange(8) - 1, number % 2 == 1
        deadline = time.monotonic() + TIMEOUT
        saving = False
        while all(program.running for program in started) and time.monotonic() < deadline:
            saving = any((killed / "checkpoints").glob("*tmp*"))
            if _last_step(killed) >= step and (saving or not while_saving):
                time.sleep(0 if saving else rng.random() * 0.05)
                break
            time.sleep(0.001)
        ended = [program.process.returncode for program in started if not program.running]
        for program in started:
            program.kill()
        if any(ended):
            print(f"{target}: a process failed before kill {number}:")
            for program in started:
                print("\n".join(program.output.splitlines()[-12:]))
        outcome = "killed in a save" if saving else "killed"
        counts[target]["lost" if any(ended) else "completed before" if ended else outcome] += 1
    failed = any([program.wait() for program in start_training(config_file, killed, processes)])
    same = not failed and read_metrics(killed) == read_metrics(whole) and read_model(killed) == read_model(whole)
    print(f"{target}: after {count} kills the metrics and weights are {'the same' if same else 'WRONG'}", flush=True)
    if not same:
        counts[target]["wrong"] += 1
    return counts


def _last_step(workdir: pathlib.Path) -> int:
    """Returns the step of the last whole line of metrics.jsonl; -1 if there is none."""
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else -1
