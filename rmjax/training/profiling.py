"""Profiler traces of some steps of a run."""

import pathlib
import re
from typing import Any

import jax

from rmjax.core.errors import InputError


def parse_steps(value: str, last_step: int | None = None) -> tuple[int, int] | None:
    """Returns the first and the last step (from 1) to trace, as in `config.train.profile`; None if it is empty.

    >>> parse_steps("10:12")
    (10, 12)

    Raises:
      InputError: the value has another form, or the steps are not among those of a run of `last_step` steps.
    """
    if not value:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", value)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last:
        raise InputError(f"config.train.profile is {value!r}; expected first:last, two steps from 1, such as 10:12")
    if last_step is not None and last > last_step:
        raise InputError(f"config.train.profile is {value!r}; the last step of the run is {last_step}")
    return first, last


class Profiler:
    """Writes a trace of the device and of the host to `directory`, for TensorBoard or Perfetto.

    Args:
      steps: first and last step to trace; None: no trace.
    """

    def __init__(self, steps: tuple[int, int] | None, directory: pathlib.Path):
        self._first, self._last = steps or (0, 0)
        self._directory = directory
        self._tracing = False

    def before(self, step: int) -> None:
        """Starts the trace if `step` is the first one to trace, or one between (the run was resumed there)."""
        if self._first <= step <= self._last and not self._tracing:
            jax.profiler.start_trace(self._directory)
            self._tracing = True

    def after(self, step: int, outputs: Any) -> None:
        """Ends the trace after the last step; waits for its `outputs`."""
        if self._tracing and step == self._last:
            jax.block_until_ready(outputs)
            self.close()

    def close(self) -> None:
        """Ends a trace in progress, and writes it."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing = False
