"""Runs of a program in two processes, connected by jax.distributed over the loopback interface."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import jax

from tests.conftest import ROOT

TIMEOUT = 150  # seconds for one run of two processes


class Pair:
    """Two processes with two devices each; after the timeout the test fails with their output and they are killed.

    Args:
      command: command of both processes, after `python -m`.
      output: prefix of the output files, `-0.out`, `-0.err`, `-1.out` and `-1.err`.
      own: additional arguments of each process.
    """

    def __init__(self, command, output, own=((), ())):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.output = output
        self.deadline = time.time() + TIMEOUT
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

    def wait_until(self, happened):
        """Waits until `happened()` is true."""
        while not happened():
            self.check(all(process.poll() is None for process in self.processes), "ended early")
            self.check(time.time() < self.deadline, "did not get there")
            time.sleep(0.05)

    def wait(self):
        """Waits until both processes have ended."""
        for process in self.processes:
            try:
                process.wait(max(1.0, self.deadline - time.time()))
            except subprocess.TimeoutExpired:
                self.check(False, "still running")

    def finish(self, status=0):
        """Waits until both processes have exited with `status`; returns their standard outputs."""
        self.wait()
        self.check([process.returncode for process in self.processes] == [status] * 2, "failed")
        return self.outputs()

    def outputs(self):
        return [self.text(number, "out") for number in range(2)]

    def text(self, number, kind):
        return pathlib.Path(f"{self.output}-{number}.{kind}").read_text()

    def check(self, condition, message):
        assert condition, message + "".join(
            f"\nprocess {i}: {self.text(i, kind)[-3000:]}" for i in (0, 1) for kind in ("out", "err")
        )


# Gloo's threads write "[Gloo] Rank 1 is connected to 3 peer ranks. Expected number of connected peer ranks is : 3"
# piece by piece, so that the pieces of several threads can mix.
_GLOO_WORDS = frozenset(["Gloo", "Rank", "is", "connected", "to", "peer", "ranks", "Expected", "number", "of"])


def own_lines(output):
    """Returns the lines that the program printed, without those of Gloo's threads."""
    return [line for line in output.splitlines() if not set(re.findall("[A-Za-z]+", line)) <= _GLOO_WORDS]
