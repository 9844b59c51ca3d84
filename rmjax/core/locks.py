"""Locks of what a program writes: a directory or a file has one writer at a time.

The lock is flock's on a file that names its holder, so it ends with the process, however that ends. On one host this is
certain. On a file system that several hosts share, it holds where the file system passes flock on: NFS from version 4,
Lustre mounted with `flock`, CephFS, GPFS; where it does not, a lock of another host is not seen, and a file that such a
holder left is reported.
"""

import contextlib
import datetime
import errno
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import jax

from rmjax.core import os_errors, state_files
from rmjax.core.errors import InputError
from rmjax.core.processes import synchronized_errors

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of file systems


@contextlib.contextmanager
def hold(target: pathlib.Path, name: str, *, directory: bool) -> Iterator[None]:
    """Holds the lock of a target, in the first process; all processes must call it.

    Args:
      name: of the option that gives the target, in messages.
      directory: the target is a directory, which is made, and has the lock within. Otherwise the lock is beside it.

    Raises:
      InputError: another process holds the lock, or the target cannot be written.
    """
    path = target / ".lock" if directory else target.with_name(f".{target.name}.lock")
    with contextlib.ExitStack() as stack:
        with synchronized_errors():
            if jax.process_index() == 0:
                os_errors.check_writable(path.parent, name)
                with os_errors.reported(path):
                    stack.enter_context(_hold(path, target, name))
        yield


@contextlib.contextmanager
def _hold(path: pathlib.Path, target: pathlib.Path, name: str) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(path, target, name)
    try:
        left = _read(descriptor)
        if left and left.get("host") != socket.gethostname():
            state_files.warn(
                f"{name}={target}: its last writer, {_describe(left)}, has not ended properly, or its lock is not seen "
                "from this host; make sure that it has ended"
            )
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is locked
        os.close(descriptor)
        for parent in made:  # of a run that has written nothing
            with contextlib.suppress(OSError):
                parent.rmdir()


def _lock(path: pathlib.Path, target: pathlib.Path, name: str) -> int:
    """Returns the descriptor of the lock file, locked if the file system has locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _wait_for_owner(descriptor)
            os.close(descriptor)
            raise InputError(
                f"{name}={target} is being written by {_describe(owner)}; wait until it has ended, or choose another "
                f"{name}",
                page="docs/troubleshooting.md#another-program-writes-the-same-directory",
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # of a file that its last holder has removed meanwhile


def _read(descriptor: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return owner if isinstance(owner, dict) else {}
    except ValueError:
        return {}


def _wait_for_owner(descriptor: int) -> dict[str, Any]:
    """Returns what the holder of a lock writes right after taking it."""
    for _ in range(20):
        if owner := _read(descriptor):
            return owner
        time.sleep(0.05)
    return {}


def _describe(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"
