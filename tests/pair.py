"""A program in two real processes, joined by jax.distributed over loopback."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import jax

from tests.conftest import ROOT

DEADLINE = 150  # seconds, for one run of two processes


class Pair:
    """Two processes with two devices each; killed, and their output shown, where they outlive the deadline.

    Args:
      command: of both, after `python -m`; `own` follows it in each.
      output: where their outputs go: this path and `-0.out`, `-0.err`, `-1.out`, `-1.err`.
    """

    def __init__(self, command, output, own=((), ())):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.output = output
        self.deadline = time.time() + DEADLINE
        self.processes = []
        for number in range(2):
            environment = dict(
                os.environ,
                JAX_COORDINATOR_ADDRESS=address,
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(number),
                JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
                JAX_NUM_CPU_DEVICES="2",
                PYTHONUNBUFFERED="1",
                JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,
                JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
                GLIBC_TUNABLES="",  # no re-execution
            )
            program = [sys.executable, "-m", *command, *own[number]]
            with open(f"{output}-{number}.out", "w") as out, open(f"{output}-{number}.err", "w") as err:
                self.processes.append(subprocess.Popen(program, cwd=ROOT, env=environment, stdout=out, stderr=err))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def wait_until_joined(self):
        """Waits until the first process reports on its data: by then both have joined, and no step is taken yet."""
        while "train: " not in self.outputs()[0]:
            self.check(all(process.poll() is None for process in self.processes), "ended early")
            self.check(time.time() < self.deadline, "never joined")
            time.sleep(0.05)

    def wait(self):
        """Waits for both to end."""
        for process in self.processes:
            try:
                process.wait(max(1.0, self.deadline - time.time()))
            except subprocess.TimeoutExpired:
                self.check(False, "still running")

    def finish(self):
        """Waits for both to end well; returns what each printed."""
        self.wait()
        self.check(not any(process.returncode for process in self.processes), "failed")
        return self.outputs()

    def outputs(self):
        return [self.text(number, "out") for number in range(2)]

    def text(self, number, kind):
        return pathlib.Path(f"{self.output}-{number}.{kind}").read_text()

    def check(self, fine, what):
        assert fine, what + "".join(
            f"\nprocess {i}: {self.text(i, kind)[-3000:]}" for i in (0, 1) for kind in ("out", "err")
        )


def own_lines(output):
    """Returns what a process said itself: Gloo's threads print too, and their lines may run into each other."""
    return [line for line in output.splitlines() if line and not line.startswith("[Gloo]")]
