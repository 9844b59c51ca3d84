"""Signals end a program with one line and 128 + their number, whatever it does."""

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import functools, hashlib, sys, threading, time
from rmjax.core import program, stopping

stopping.GRACE_SECONDS = 0.3 if sys.argv[0] == "compute" else 30.0

def main(_):
    try:
        started = functools.partial(print, "started", flush=True)
        if sys.argv[0] == "sleep":
            started()
            time.sleep(600)
        threading.Timer(0.5, started).start()  # when the hash function runs
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)  # no Python code runs meanwhile, as in a compilation
    finally:
        print("cleaned up", flush=True)

program.run(main, program.Flags())
"""


def stop(code, number, argument="sleep"):
    """Returns (exit status, lines of standard output, lines of standard error) of a program that gets a signal."""
    # Where the tests run in the background of a shell, programs inherit that Ctrl-C is ignored.
    foreground = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{foreground}; sys.argv = [{argument!r}]\n" + code]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, process_group=0
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), error.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_program_after_its_clean_up(number):
    assert stop(PROGRAM, number) == (128 + number, ["cleaned up"], [f"stopped by {number.name}"])


def test_a_signal_ends_a_program_that_does_not_return_to_python():
    assert stop(PROGRAM, signal.SIGTERM, "compute") == (143, [], ["stopped by SIGTERM"])


def test_a_program_that_still_imports_ends_at_once():
    code = "sys.argv = ['-m']\nimport rmjax, time\nprint('started', flush=True)\ntime.sleep(600)"
    assert stop(code, signal.SIGTERM) == (143, [], ["stopped by SIGTERM"])
