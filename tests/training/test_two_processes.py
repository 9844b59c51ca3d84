"""Two real processes, joined by jax.distributed over loopback, train as one."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from rmjax.training.run import train
from tests.conftest import ROOT
from tests.training.conftest import tiny as tiny_config
from tests.training.test_train import lines, losses

DEADLINE = 150  # seconds, for one run of two processes
STEPS = 12


class Pair:
    """Two processes with two devices each; killed, and their output shown, where they outlive the deadline."""

    def __init__(self, config_file, workdir):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.workdir = workdir
        self.deadline = time.time() + DEADLINE
        self.processes = []
        for number in range(2):
            environment = dict(
                os.environ, JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(number),
                JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo", JAX_NUM_CPU_DEVICES="2", PYTHONUNBUFFERED="1",
                JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,
                JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", GLIBC_TUNABLES="",  # no re-execution
            )  # fmt: skip
            command = [sys.executable, "-m", "rmjax.train", f"--config={config_file}", f"--workdir={workdir}"]
            with open(f"{workdir}-{number}.out", "w") as out, open(f"{workdir}-{number}.err", "w") as err:
                self.processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err))

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

    def finish(self):
        """Waits for both to end well; returns what each printed."""
        for process in self.processes:
            try:
                process.wait(max(1.0, self.deadline - time.time()))
            except subprocess.TimeoutExpired:
                self.check(False, "still running")
        self.check(not any(process.returncode for process in self.processes), "failed")
        return self.outputs()

    def outputs(self):
        return [self.text(number, "out") for number in range(2)]

    def text(self, number, kind):
        return pathlib.Path(f"{self.workdir}-{number}.{kind}").read_text()

    def check(self, fine, what):
        assert fine, what + "".join(
            f"\nprocess {i}: {self.text(i, kind)[-3000:]}" for i in (0, 1) for kind in ("out", "err")
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A configuration file for two processes, the same in this one, and a whole run of two processes."""
    path = tmp_path_factory.mktemp("pair")
    config = tiny_config.__wrapped__()
    config.mesh.data, config.mesh.fsdp = -1, 2
    config.train.steps = STEPS
    config.evaluation.every = STEPS // 3
    file = path / "config_file.py"
    file.write_text(
        "import json\nfrom rmjax.core import config as configs\n\ndef get_config():\n"
        f"    c = configs.default()\n    c.update(json.loads({config.to_json()!r}))\n    return c\n"
    )
    with Pair(file, path / "whole") as pair:
        outputs = pair.finish()
    return file, config, path / "whole", outputs


def test_the_losses_are_those_of_one_device(made, tmp_path):
    _, config, whole, _ = made
    config.mesh.data, config.mesh.fsdp = 1, 1
    train(config, tmp_path / "alone")
    np.testing.assert_allclose(losses(whole), losses(tmp_path / "alone"), atol=1e-5)


def test_the_first_process_alone_writes_and_prints(made):
    _, _, whole, (first, second) = made
    assert [line["step"] for line in lines(whole, "train")] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines(whole, "validation")] == [0, STEPS // 3, 2 * STEPS // 3, STEPS]
    assert "'data': 2, 'fsdp': 2" in first
    assert f"done: {STEPS} steps" in first
    assert [line for line in second.splitlines() if not line.startswith("[Gloo]")] == []


def test_a_signal_to_one_or_to_both_saves_and_the_run_continues_bit_for_bit(made, tmp_path):
    """The signal comes before the first step; JAX notices within a second, and both agree on a step soon after."""
    file, _, whole, _ = made
    workdir = tmp_path / "stopped"
    saved = [0]
    for told in ([1], [0, 1]):
        with Pair(file, workdir) as pair:
            pair.wait_until_joined()
            for number in told:
                pair.processes[number].send_signal(signal.SIGTERM)
            assert "stopped at step" in pair.finish()[0]
        saved.append(max(int(path.name) for path in (workdir / "checkpoints").iterdir()))
        assert lines(workdir)[-1]["step"] == saved[-1] > saved[-2]
    with Pair(file, workdir) as pair:
        assert f"resuming {workdir} at step {saved[-1]} of {STEPS}" in pair.finish()[0]
    assert lines(workdir) == lines(whole)
