"""Dead, suspended, absent and failing processes: the others end in time, with one line that names them."""

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

PROGRAM = """
import sys, time
from rmjax.core import lost_service, peers, processes, program, stopping

stopping.GRACE_SECONDS, peers._DEAD_SECONDS, lost_service._CLOSING_SECONDS = 0.3, 5.0, 1.0
peers._MESSAGE_SECONDS = 30.0  # on a busy machine, the death of a process is noticed later

def main(_):
    program.initialize_distributed()
    while True:
        processes.of_first(1)
        print("connected", file=sys.stderr, flush=True)
        time.sleep(0.1)

program.run(main, program.Flags())
"""


@pytest.fixture
def start():
    """Starts processes of a program of two: `start(*indices)`; kills them at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []

    def run(*indices, seconds="60"):
        for index in indices:
            environment = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(index),
                "RMJAX_CONNECT_SECONDS": seconds,
                "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            }
            command = [sys.executable, "-c", "import sys; sys.argv = ['']\n" + PROGRAM]
            started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
        return started

    yield run
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def connected(process):
    """Waits until a process has connected."""
    for line in process.stderr:
        if line == "connected\n":
            return
    pytest.fail("it has not connected")


def errors(process):
    """Returns the exit status of a process, and its lines of errors; those of JAX's log are left out."""
    text = process.communicate(timeout=60)[1]
    assert "Traceback" not in text
    assert "terminate called" not in text
    return process.returncode, re.findall(r"^(?:error|stopped).*", text, re.MULTILINE)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_dies_or_hangs_ends_the_other(start, index, number):
    pair = start(0, 1)
    for process in pair:
        connected(process)
    pair[index].send_signal(number)
    status, lines = errors(pair[1 - index])
    assert status == 1
    assert len(lines) == 1
    # Of process 0 the sockets are closed at once; others are noticed by their silence.
    why = {(0, signal.SIGKILL): "has ended or cannot be reached", (0, signal.SIGSTOP): "has not answered for 5 s"}
    silent = "has given no sign of life for 5 s"
    assert re.match(rf"error: process {index}\b.* {why.get((index, number), silent)}", lines[0]), lines


@pytest.mark.parametrize("index", [0, 1])
def test_an_absent_process_is_named(start, index):
    (alone,) = start(1 - index, seconds="1")
    status, (line,) = errors(alone)
    assert status == 2
    assert re.match(rf"error: process {index} has not connected to 127\.0\.0\.1:\d+ .* within 1 s; start every", line)


def test_a_signal_to_one_process_ends_the_other(start):
    pair = start(0, 1)
    for process in pair:
        connected(process)
    pair[1].send_signal(signal.SIGTERM)
    assert errors(pair[1]) == (143, ["stopped by SIGTERM"])
    status, (line,) = errors(pair[0])
    assert status == 143
    assert re.match(r"error: process 1 \(.*\): stopped by SIGTERM; this process ends too", line)
