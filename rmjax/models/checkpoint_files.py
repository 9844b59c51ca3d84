"""The files of checkpoints: steps, validation metrics, and checksums that Orbax does not keep.

OCDBT verifies its index, not the arrays, and the Zarr formats that Orbax writes have no checksum of the data. So the
checksums of all files are written into a checkpoint when it is complete, before it gets its name.
"""

import itertools
import json
import logging
import os
import pathlib

import absl.logging
import jax
import numpy as np
from jax.experimental import multihost_utils

from rmjax.core import state_files
from rmjax.core.errors import InputError
from rmjax.core.files import write_atomic
from rmjax.core.processes import synchronized_errors

METRICS = "metrics/metrics"
_ORBAX = os.sep + os.path.join("orbax", "checkpoint") + os.sep
# Written after the checksums: times and the names of handlers, on which nothing here depends.
_LATE = ("_CHECKPOINT_METADATA", "commit_success.txt")


def _is_shown(record: logging.LogRecord) -> bool:
    # Orbax warns of files that nothing here depends on, and logs the traceback of errors that it raises too.
    return _ORBAX not in record.pathname or (record.levelno >= logging.ERROR and not record.exc_info)


absl.logging.get_absl_logger().addFilter(_is_shown)


def steps(directory: pathlib.Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a directory, ascending."""
    return sorted(int(child.name) for child in directory.glob("*") if child.name.isdigit())


def write_sums(directory: pathlib.Path, step: int, history: pathlib.Path | None = None, size: int = 0) -> None:
    """Writes the checksums of a checkpoint that is complete and still has its temporary name.

    Args:
      directory: of the checkpoints.
      history: a file that is appended to; the checksum of its first `size` bytes is kept too.
    """
    temporary = max(directory.glob(f"{step}.*tmp*"), key=lambda path: path.stat().st_mtime)
    more = {} if history is None else {"history": state_files.file_sum(history, size)}
    state_files.write_sums(temporary, state_files.file_sums(temporary, _LATE), **more)


def add_metrics(directory: pathlib.Path, step: int, metrics: dict[str, float]) -> None:
    """Adds validation metrics to a complete checkpoint, as Orbax writes them; then their checksum."""
    path = directory / str(step) / METRICS
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, json.dumps(metrics))
    if (sums := state_files.read_sums(directory / str(step))) is not None:
        files = sums.pop("files") | {METRICS: state_files.file_sum(path)}
        sums.pop("algorithm", None)
        state_files.write_sums(directory / str(step), files, **sums)


def find_damage(directory: pathlib.Path, step: int, *, metrics_only: bool = False, required: bool = False) -> str:
    """Returns the first fault of a checkpoint; "" if it is intact, or has no checksums.

    Args:
      metrics_only: verify only the validation metrics. Otherwise all processes must call this function: each reads a
        part of the files, and a fault that one of them finds is returned in all.
      required: a checkpoint without checksums is a fault.
    """
    path = directory / str(step)
    share = (0, 1) if metrics_only else (jax.process_index(), jax.process_count())
    fault = ""
    try:
        if (sums := state_files.read_sums(path)) is not None:
            fault = next(iter(state_files.find_damage(path, sums, [METRICS] if metrics_only else None, share)), "")
        elif required:
            fault = f"{path / state_files.SUMS_FILE} is missing"
        if not fault and (path / METRICS).exists():
            state_files.read_object(path / METRICS)
    except InputError as error:
        fault = str(error)
    if metrics_only or jax.process_count() == 1:
        return fault
    found = multihost_utils.process_allgather(np.array(bool(fault)))
    return fault or (f"{path}: another process found damage" if found.any() else "")


def move_damaged(directory: pathlib.Path, *, required: bool = False) -> None:
    """Moves damaged checkpoints that a run would read or replace to `directory`/damaged, with a warning for each.

    These are the ones after the latest intact one, and earlier ones whose metrics are damaged. They are not deleted.
    All processes must call this function.

    Args:
      required: as in `find_damage`.

    Raises:
      InputError: there are checkpoints, but none is intact.
    """
    found, damaged = steps(directory), {}
    for step in reversed(found):
        if not (fault := find_damage(directory, step, required=required)):
            break
        damaged[step] = fault
    else:
        if damaged:
            raise InputError(
                f"{directory}: none of the checkpoints is intact: {'; '.join(damaged.values())}; restore one, or "
                "remove them all to begin again"
            )
    for step in found[: len(found) - len(damaged)]:
        if fault := find_damage(directory, step, metrics_only=True):
            damaged[step] = fault
    with synchronized_errors():
        for step, fault in damaged.items() if jax.process_index() == 0 else ():
            (directory / "damaged").mkdir(exist_ok=True)
            names = itertools.chain([str(step)], (f"{step}-{number}" for number in itertools.count(2)))
            target = next(path for name in names if not (path := directory / "damaged" / name).exists())
            os.rename(directory / str(step), target)
            state_files.warn(f"{fault}: this checkpoint is damaged; moved to {target}, and an earlier one is used")


def history_is_intact(directory: pathlib.Path, step: int, history: pathlib.Path) -> bool:
    """Returns whether a file still begins as it did when the checkpoint was saved; True if that is not known."""
    expected = (state_files.read_sums(directory / str(step)) or {}).get("history")
    if expected is None:
        return True
    return history.exists() and state_files.file_sum(history, expected[0]) == expected
