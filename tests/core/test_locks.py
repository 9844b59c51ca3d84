"""A target has one writer at a time; the lock of a dead process is taken over."""

import os
import re
import signal
import subprocess
import sys

import pytest

from rmjax.core import locks
from rmjax.core.errors import InputError

HOLD = """
import pathlib, sys, time
from rmjax.core import locks
with locks.hold(pathlib.Path(sys.argv[1]), "--output", directory=sys.argv[2] == "directory"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_the_second_writer_is_refused_until_the_first_has_ended(tmp_path, kind):
    target, directory = tmp_path / "made" / "target", kind == "directory"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, target, kind],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    try:
        assert holder.stdout.readline() == "held\n"
        named = rf"--output={re.escape(str(target))} is being written by process {holder.pid} on \S+ since 20\d\d-"
        with pytest.raises(InputError, match=named), locks.hold(target, "--output", directory=directory):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with locks.hold(target, "--output", directory=directory):  # what the dead process left does not matter
        again = locks.hold(target, "--output", directory=directory)
        with pytest.raises(InputError, match=f"process {os.getpid()} on"), again:
            pass
        assert len(list(target.parent.rglob("*lock"))) == 1
    assert not list(tmp_path.rglob("*lock"))


def test_a_directory_in_which_nothing_was_written_is_removed(tmp_path):
    with locks.hold(tmp_path / "a" / "b", "workdir", directory=True):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()


def test_a_target_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    lock = locks.hold(tmp_path / "file" / "x", "--output", directory=True)
    with pytest.raises(InputError, match=r"--output=.*file is a file; choose another directory"), lock:
        pass
