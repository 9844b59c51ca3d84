"""Errors of the operating system as messages for the user: path, reason and remedy."""

import contextlib
import errno
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

from rmjax.core.errors import InputError

_BLOCK = 4096  # bytes that are written to try whether a directory can be written to
_CHOOSE = "choose another path"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # the first part of a URL as a path
_REASONS = {  # reason and remedy
    errno.ENOSPC: ("the disk is full", "free space, and run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free space, and run the same command again"),
    errno.EFBIG: ("the file would exceed the limit of its size", "raise it (ulimit -f), or choose another path"),
    errno.EROFS: ("the file system is read-only", _CHOOSE),
    errno.EACCES: ("permission is denied", f"change the permissions, or {_CHOOSE}"),
    errno.EPERM: ("the operation is not permitted", f"change the permissions, or {_CHOOSE}"),
    errno.ENOTDIR: ("a file is where a directory should be", f"remove it, or {_CHOOSE}"),
    errno.EEXIST: ("a file is where a directory should be", f"remove it, or {_CHOOSE}"),
    errno.EISDIR: ("a directory is where a file should be", _CHOOSE),
    errno.ENOENT: ("it does not exist", "check the path"),
    errno.ELOOP: ("its symbolic links form a loop", "remove one of the links"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one"),
    errno.EIO: ("the disk reports an input/output error", "check the disk"),
    errno.ESTALE: ("the network file system has lost the file", "mount it again, and run the same command again"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n)"),
}


def describe(error: OSError, path: pathlib.Path | str | None = None) -> str:
    """Returns path, reason and remedy of an error.

    Args:
      path: that is named if the error has none.

    >>> describe(OSError(errno.ENOSPC, "No space left on device"), "runs/1")
    'runs/1: the disk is full; free space, and run the same command again'
    """
    names = [error.filename, error.filename2, path]
    where = next((os.fsdecode(name) for name in names if name and not isinstance(name, int)), "")
    known = _REASONS.get(error.errno or 0)
    reason, remedy = known or (error.strerror or str(error) or type(error).__name__, "check the path and the disk")
    if where and error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTDIR):
        reason, remedy = _obstacle(pathlib.Path(where)) or (reason, remedy)
    return f"{where}: {reason}; {remedy}" if where else f"{reason}; {remedy}"


def _obstacle(path: pathlib.Path) -> tuple[str, str] | None:
    """Returns reason and remedy if the path leads over a dangling link or a file."""
    for part in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            if part.is_symlink() and not part.exists():
                return f"{part} is a link to {os.readlink(part)}, which does not exist", "remove or correct the link"
            if part != path and part.is_file():
                return f"{part} is a file", f"remove it, or {_CHOOSE}"
    return None


def save_error(path: pathlib.Path, error: Exception) -> InputError:
    """Returns the error for a file that a library could not write; TensorStore gives the reason only in its text."""
    if isinstance(error, OSError):
        return InputError(f"saving {describe(error, path)}")
    text = " ".join(str(error).split())
    for number in _REASONS:
        if os.strerror(number) in text or f"errno {number}]" in text.lower():
            return InputError(f"saving {describe(OSError(number, ''), path)}")
    return InputError(f"saving {path} failed ({type(error).__name__}: {text[:300]}); check the disk")


@contextlib.contextmanager
def saving(path: pathlib.Path) -> Iterator[None]:
    """Raises `save_error` if a library cannot write a file: those in Rust raise no OSError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise save_error(path, error) from error


@contextlib.contextmanager
def reported(path: pathlib.Path | str) -> Iterator[None]:
    """Raises an InputError instead of an OSError, naming `path` if the error names none."""
    try:
        yield
    except BrokenPipeError:  # the reader of standard output has ended
        raise
    except OSError as error:
        raise InputError(describe(error, path)) from error


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the path of a temporary file beside `path`, which replaces `path` at the end; removed after an error.

    Raises:
      OSError: the file cannot be written; it names `path`.
    """
    partial = path.with_name(f".{path.name}.part")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError) and error.errno and str(error.filename) in ("None", str(partial)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def check_writable(directory: pathlib.Path, name: str) -> None:
    """Raises InputError, with the option's `name`, unless files can be written to a directory, which may not exist yet.

    A block is written to it, or to the directory that it would be created in, and removed again.

    >>> check_writable(pathlib.Path("/dev/null/results"), "--output")
    Traceback (most recent call last):
      ...
    rmjax.core.errors.InputError: --output=/dev/null/results: /dev/null is a file; choose another directory
    """
    if directory.parts and _SCHEME.fullmatch(directory.parts[0]) and not pathlib.Path(directory.parts[0]).exists():
        raise InputError(
            f"{name}={directory}: results are written to file systems, not to URLs; give a local path and copy it "
            "afterwards, or mount the bucket (gcsfuse, mountpoint-s3, rclone mount)"
        )
    for path in (directory, *directory.absolute().parents):
        if path.is_symlink() and not path.exists():
            raise InputError(
                f"{name}={directory}: {path} is a link to {os.readlink(path)}, which does not exist; remove or correct "
                "the link"
            )
        if path.exists():
            break
    if not path.is_dir():
        raise InputError(f"{name}={directory}: {path} is a file; choose another directory")
    try:
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "", str(path))
        with tempfile.TemporaryFile(dir=path, buffering=0) as file:
            file.write(b"\0" * _BLOCK)
    except OSError as error:
        raise InputError(f"{name}={directory}: {describe(error, path)}") from error
