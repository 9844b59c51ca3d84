"""The cache of tokenized datasets on disk.

An entry is a directory with a .npy file per array, mapped by all processes, and a JSON file for the rest.
"""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import filelock
import numpy as np

from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.data.tokens.tokenize import DatasetReport

_METADATA = "dataset.json"
TOKENS = "tokens.npy"


def read(path: pathlib.Path) -> tuple[TokenizedDataset, DatasetReport] | None:
    """Returns a cache entry with memory-mapped arrays; None if there is none, or it is incomplete or truncated."""
    try:
        metadata = json.loads((path / _METADATA).read_text())
        report = DatasetReport(**metadata.pop("report"))
        arrays: dict[str, Any] = {file.stem: np.load(file, mmap_mode="r") for file in path.glob("*.npy")}
        names = {name: tuple(value) for name, value in metadata.items()}
        return TokenizedDataset(**(arrays | names)), report
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


@contextlib.contextmanager
def locked(path: pathlib.Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Holds the lock of a cache entry, which only one process makes; the lock of a dead process is released.

    Without the lock where the directory cannot be written, or its file system has no locks.

    Args:
      waiting: is called before waiting for another process.
    """
    lock = filelock.FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            waiting()
            lock.acquire()
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def partial_entry(path: pathlib.Path | None) -> Iterator[pathlib.Path | None]:
    """Yields a new directory beside a cache entry for its files, which is removed; None where it cannot be made."""
    temporary = None
    if path is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{path.name}-", suffix=".part"))
    try:
        if temporary is not None:
            (temporary / "entry").mkdir()  # `mkdtemp` makes a private directory; this one follows the umask
        yield temporary and temporary / "entry"
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write(path: pathlib.Path, partial: pathlib.Path, dataset: TokenizedDataset, report: DatasetReport) -> None:
    """Completes an entry, whose directory `partial` holds the tokens, and moves it to `path` atomically.

    Of several concurrent writers, the first one's entry is kept. Raises OSError.
    """
    metadata: dict[str, Any] = {"report": vars(report)}
    for name, value in vars(dataset).items():
        if not isinstance(value, np.ndarray):
            metadata[name] = value
        elif f"{name}.npy" != TOKENS:
            with open(partial / f"{name}.npy", "wb") as file:
                np.save(file, value)
                file.flush()
                os.fsync(file.fileno())  # else a power failure after the rename could leave zeros in the file
    (partial / _METADATA).write_text(json.dumps(metadata, default=vars))
    if path.exists() and read(path) is None:
        shutil.rmtree(path, ignore_errors=True)  # damaged
    try:
        os.rename(partial, path)
    except OSError:
        if read(path) is None:
            raise
