"""Two writers of one target, started at the same time."""

import pathlib
import re
import shutil
from collections.abc import Callable

from faults_common import Counts, Program, new_counts, read_metrics, read_model, tiny_config, write_config, write_pairs

from rmjax.training.experiment import train


def inject_writers(directory: pathlib.Path, rounds: int) -> Counts:
    """Starts two of each program `rounds` times; counts the outcomes by program."""
    directory.mkdir()
    pairs, run, target = write_pairs(directory / "pairs.jsonl", 400), directory / "run", directory / "target"
    config = tiny_config(6, 3)
    train(config, run, log=lambda line: None, progress=False)
    file, counts = write_config(config, directory / "config_file.py"), new_counts()
    files = lambda: {
        path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()
    }
    programs: dict[str, tuple[list[str], Callable[[], object]]] = {
        "train": (
            ["rmjax.train", f"--config={file}", f"--workdir={target}"],
            lambda: (read_metrics(target), read_model(target)),
        ),
        "evaluate": (["rmjax.evaluate", f"--model={run}", f"--data={pairs}", f"--output={target}"], files),
        "score": (["rmjax.score", f"--model={run}", f"--input={pairs}", f"--output={target}"], target.read_bytes),
        "export": (["rmjax.export", f"--workdir={run}", f"--output={target}"], files),
    }

    def clear() -> None:
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)

    for name, (arguments, results) in programs.items():
        if Program(arguments, directory / f"{name}.txt").wait():
            raise SystemExit(f"{name} failed alone; see {directory}/{name}.txt")
        expected = results()
        for _ in range(rounds):
            clear()
            pair = [Program(arguments, directory / f"{name}-{index}.txt") for index in range(2)]
            for program in pair:
                program.wait()
            outcome = _outcome(pair)
            if outcome == "refused" and results() != expected:
                outcome = "wrong: other results"
            counts[name][outcome.partition(":")[0]] += 1
            if outcome != "refused":
                print(f"{name}: {outcome}\n" + "\n".join(program.output[-2000:] for program in pair), flush=True)
        clear()
    return counts


def _outcome(pair: list[Program]) -> str:
    """Returns `refused` if one program was refused, and named the other; else what is wrong."""
    first, second = sorted(pair, key=lambda program: program.process.returncode)
    if (first.process.returncode, second.process.returncode) != (0, 2):
        return f"wrong: exit statuses {first.process.returncode}, {second.process.returncode}"
    named = rf"is being written by process {first.process.pid} on \S+ since "
    lines = second.error_lines()
    if len(lines) == 1 and re.search(named, lines[0]) and "Traceback" not in second.output:
        return "refused"
    return f"lost: the lines are {lines}"
