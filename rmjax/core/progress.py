"""Progress bars for terminals, notebooks and log files."""

import sys
import time
from collections.abc import Callable
from typing import Any

import tqdm.asyncio
import tqdm.auto

_LOG_INTERVAL = 30.0  # seconds between lines in a log file
_IN_NOTEBOOK = tqdm.auto.tqdm is not tqdm.asyncio.tqdm


class _Rate:
    """The rate after the first update: the time until then is that of compilation."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)

    def update(self, count: float) -> None:
        self._last = (count, time.perf_counter())
        self._first = self._first or self._last

    def value(self) -> float:
        """Returns units per second; 0 if it is not known yet."""
        if self._first is None:
            return 0.0
        (first_count, start), (count, end) = self._first, self._last
        return (count - first_count) / (end - start) if end > start else 0.0


class _Bar(tqdm.auto.tqdm):
    """A bar of `tqdm.auto` whose rate and time left exclude the first update."""

    def __init__(self, **options: Any):
        self._rate = _Rate()
        super().__init__(**options)

    def update(self, n: float = 1) -> bool | None:
        self._rate.update(self.n + n)
        return super().update(n)

    @property
    def format_dict(self) -> dict[str, Any]:
        return {**super().format_dict, "rate": self._rate.value()}


class _Lines:
    """A stand-in for a bar in a log file: a plain line every 30 seconds and at the end."""

    def __init__(self, total: int | None, description: str, unit: str, initial: float):
        self._total, self._prefix, self._unit, self._count = total, description, unit, initial
        self._rate, self._postfix = _Rate(), ""
        self._start = self._written = time.perf_counter()
        self._changed = False

    def update(self, n: float = 1) -> None:
        self._count += n
        self._rate.update(self._count)
        self._changed = True
        if time.perf_counter() - self._written >= _LOG_INTERVAL:
            self._write()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        self._postfix = text

    def close(self) -> None:
        if self._changed:
            self._write()

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self) -> None:
        self._written, self._changed = time.perf_counter(), False
        line = tqdm.tqdm.format_meter(
            self._count,
            self._total,
            self._written - self._start,
            ncols=0,
            prefix=self._prefix,
            unit=self._unit,
            rate=self._rate.value(),
            postfix=self._postfix,
        )
        print(line, file=sys.stderr, flush=True)


def progress_bar(total: int | None, description: str, unit: str, *, initial: int = 0, disable: bool = False) -> Any:
    """Returns a progress bar of `tqdm.auto`; where standard error is no terminal and no notebook, one of plain lines.

    It is a context manager with `update(count)`, `set_postfix_str(text, refresh)` and `close()`; rate and time left
    exclude the first update, in which programs are compiled. `disable` shows nothing.
    """
    if not disable and not _IN_NOTEBOOK and not sys.stderr.isatty():
        return _Lines(total, description, unit, initial)
    return _Bar(total=total, initial=initial, desc=description, unit=unit, disable=disable, dynamic_ncols=True)


def write_line(log: Callable[[str], object], line: str) -> None:
    """Calls `log(line)` with the bars cleared from the terminal meanwhile."""
    with tqdm.auto.tqdm.external_write_mode():
        log(line)
