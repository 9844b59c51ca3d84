"""Signals that stop a program: SIGTERM and Ctrl-C.

A program ends within `GRACE_SECONDS` of a signal, with one line and the exit status 128 + signal, whatever it does.
While a `StopRequest` is armed, because there is something to save, the first signal is a request and the second one
ends it.

The signal handler of Python runs in the main thread, between two operations of Python: not while XLA compiles or the
devices compute. So a thread, which `signal.set_wakeup_fd` wakes at once, ends the process if the main thread does not.
"""

import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

GRACE_SECONDS = 5.0  # for removing temporary files and ending other processes
_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """A signal was received; raised in the main thread."""

    def __init__(self, number: int):
        super().__init__(describe(number))
        self.number = number


class _State:
    """What the signal handler and the watching thread know."""

    def __init__(self) -> None:
        self.armed: StopRequest | None = None
        self.watching = False


_STATE = _State()


def describe(number: int) -> str:
    """Returns the line that a program prints when a signal has ended it."""
    return f"stopped by {signal.Signals(number).name}"


def exit_at_once(number: int) -> NoReturn:
    """Ends the process after a signal, without the interpreter's shutdown, which can crash while JAX compiles."""
    print(describe(number), file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(128 + number)


def install() -> None:
    """Handles signals from now on by ending the process at once; for programs that are still importing modules."""
    _set_handlers(lambda number, frame: exit_at_once(number))


def start() -> None:
    """Handles signals from now on by raising `Stopped`, and ends the process if that takes too long; for programs."""
    _set_handlers(_raise)
    if _STATE.watching:
        return
    _STATE.watching = True
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()


def _set_handlers(handler: Any) -> None:
    for number in _NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:  # `nohup`, or a shell's background process
            signal.signal(number, handler)


def _raise(number: int, frame: Any) -> None:
    raise Stopped(number)


def _watch(reader: int) -> None:
    while True:
        for number in os.read(reader, 64):
            # The handler of an armed request may have run before or after this thread wakes.
            request = _STATE.armed
            if number in _NUMBERS and (request is None or not request.accept()):
                time.sleep(GRACE_SECONDS)
                exit_at_once(number)


class StopRequest:
    """Context manager that turns a signal into a request to stop, `number`, from the time when it is armed.

    Before, and from the second signal on, signals are handled as they were. Only the main thread can handle signals; in
    another thread nothing is changed.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal; 0: none
        self._accepted = self._armed = False
        self._previous: dict[int, Any] = {}

    def arm(self) -> None:
        """Makes the next signal a request: there is now something to save."""
        if not self._armed and threading.current_thread() is threading.main_thread():
            self._armed = True
            _STATE.armed = self
            for number in _NUMBERS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._handle)

    def accept(self) -> bool:
        """Returns whether a signal is the first one; called by the watching thread for each."""
        first, self._accepted = not self._accepted, True
        return first

    def _handle(self, number: int, frame: Any) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        if _STATE.armed is self:
            _STATE.armed = None
