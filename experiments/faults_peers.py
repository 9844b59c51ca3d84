"""Dead, stopped, absent and failing processes of a run of two."""

import pathlib
import re
import shutil
import signal
import time

from faults_common import Counts, Program, free_address, new_counts, tiny_config, wait_for_metrics, write_config

_SECONDS = 60.0  # within which the other process must end
_STARTING_SECONDS = 15.0  # more for one that starts alone: it imports before it waits
_STEPS = 100_000
_FAILING = """

def _fail(*_):
    raise {error}

import os
from rmjax.core.errors import InputError
if os.environ["JAX_PROCESS_ID"] == "{index}":
    from rmjax.training import loop
    loop.{place} = _fail
"""
_ERRORS = {"an error of the input": 'InputError("injected")', "a bug": 'RuntimeError("injected")'}
_PLACES = {"before the first step": "CompositeWriter", "in a step": "StepLogger.flush"}


def inject_dead_peers(directory: pathlib.Path) -> Counts:
    """Lets one of two processes die, stop, be absent or fail; counts whether the other ends in time and names it."""
    directory.mkdir()
    counts, text = new_counts(), write_config(tiny_config(_STEPS, _STEPS), directory / "whole.py").read_text()
    seconds = []

    def count(
        name: str, index: int, begin: float, programs: list[Program], pattern: str, limit: float = _SECONDS
    ) -> None:
        """Waits for the process that is not `index` and counts."""
        other = programs[-1 if index == 0 else 0]
        status = other.wait(2 * _SECONDS)
        taken, lines = time.monotonic() - begin, other.error_lines()
        seconds.append(taken)
        for program in programs:
            program.process.send_signal(signal.SIGCONT)
            program.kill()
        text = other.output
        found = status in (1, 2) and taken < limit and len(lines) == 1 and re.search(pattern, lines[0])
        found = found and "Traceback" not in text and "terminate called" not in text
        counts[name]["found" if found else "lost"] += 1
        print(f"{name}, process {index}: exit status {status} after {taken:.0f} s: {'; '.join(lines)}", flush=True)
        if not found:
            print(text[-3000:], flush=True)

    def start(name: str, config: pathlib.Path, indices: tuple[int, ...] = (0, 1)) -> list[Program]:
        workdir, address = directory / "run", free_address()
        shutil.rmtree(workdir, ignore_errors=True)
        arguments = ["rmjax.train", f"--config={config}", f"--workdir={workdir}"]
        return [Program(arguments, directory / f"{name}-{i}.txt", (address, 2, i)) for i in indices]

    for index in (0, 1):
        named = rf"process {index}\b"
        for name, number in (("killed in training", signal.SIGKILL), ("stopped in training", signal.SIGSTOP)):
            programs = start(f"{name}-{index}", directory / "whole.py")
            wait_for_metrics(directory / "run", '"split": "train"', programs)
            programs[index].process.send_signal(number)
            count(name, index, time.monotonic(), programs, named)
        begin = time.monotonic()
        alone = start(f"absent-{index}", directory / "whole.py", (1 - index,))
        count("absent", index, begin, alone, named, _SECONDS + _STARTING_SECONDS)
        for place, attribute in _PLACES.items():
            for kind, error in _ERRORS.items():
                name = f"{kind} {place}"
                file = directory / "failing.py"
                file.write_text(text + _FAILING.format(error=error, index=index, place=attribute))
                programs = start(f"{name}-{index}".replace(" ", "-"), file)
                programs[index].wait()
                count(name, index, time.monotonic(), programs, rf"{named}.*injected")
    print(f"the other process ended after at most {max(seconds):.0f} s")
    return counts
