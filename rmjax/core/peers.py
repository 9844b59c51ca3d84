"""The other processes of a multi-process program: connecting, failures, deaths, and stopping at the same step.

All use the key-value store of JAX's coordination service, which runs in the first process. A thread of each process
writes a counter there every `_PERIOD` seconds, and reads what the others wrote: a message of one that failed, counters
that stand still, and a request to stop. A call to a service that hangs returns after minutes, so a second thread ends
the process when the first one gets no answer. JAX itself notices a dead process after 100 s, and ends the others by an
abort.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from rmjax.core import lost_service, stopping
from rmjax.core.errors import InputError

CONNECT_VARIABLE = "RMJAX_CONNECT_SECONDS"  # how long processes wait for each other at the start
_CONNECT_SECONDS = 50
_DEAD_SECONDS = 40.0  # without a sign of life
_PERIOD = 0.5
_MESSAGE_SECONDS = 3.0  # to wait for the message of a process that failed
_LEAVING_SECONDS = 5.0  # for which the first process waits until the others have read why it ends
_KEY = "rmjax"


class Peers:
    """What a process of a multi-process program knows of the others.

    Args:
      client: of JAX's coordination service.
      index, count: of this process, and the number of processes.
    """

    def __init__(self, client: Any, index: int, count: int):
        self._client, self.index, self.count = client, index, count
        self.leaving = False
        self._lock = threading.Lock()  # held while the processes agree on a call of `poll`
        self._calls = 0
        self._wanted = self._signal = self._stop_at = 0
        self._seen: dict[int, tuple[str, float]] = {}
        self._names: dict[int, str] = {}
        self._unanswered = 0  # periods since the service last answered
        self._set(f"name/{index}", f"{socket.gethostname()}, pid {os.getpid()}")
        for watch in (self._watch, self._watch_service):
            threading.Thread(target=watch, name="peers", daemon=True).start()

    def want_stop(self, number: int) -> None:
        """Asks all processes to stop because of a signal; may be called by a signal handler."""
        self._wanted = number

    def poll(self) -> int:
        """Returns the signal for which all processes stop at this call, the same one in all; 0: none.

        Every process must make the same calls.
        """
        with self._lock:
            self._calls += 1
            return self._signal if self._calls == self._stop_at else 0

    def fail(self, message: str, status: int) -> None:
        """Tells the other processes that this one ends, with its message and exit status; does nothing if they know."""
        if not self.leaving:
            self.leaving = True
            self._set(f"failed/{self.index}", json.dumps([message, status]))
            self._leave()

    def failure(self, error: Exception | None = None) -> tuple[str, int]:
        """Returns message and exit status of a process that failed, which may be why `error` was raised; or ("", 0).

        Waits for the message. A collective operation also fails when another process is killed: that is waited for too,
        until the watch ends this process.
        """
        # Memory is used up in one process alone, without another one's fault.
        collective = type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" not in str(error)
        deadline = time.monotonic() + _MESSAGE_SECONDS + (_DEAD_SECONDS if collective else 0)
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                for index, (message, status) in self._failed().items():
                    if index != self.index:
                        return f"{self._name(index)}: {message}", status
            time.sleep(_PERIOD / 5)
        return "", 0

    def close(self) -> None:
        """Ends the watch: this process has done its work."""
        self.leaving = True
        self._set(f"left/{self.index}", "")

    def _watch(self) -> None:
        beats = 0
        while not self.leaving:
            with contextlib.suppress(Exception):  # JaxRuntimeError: the service does not answer
                beats += 1
                self._set(f"alive/{self.index}", str(beats), raising=True)
                self._read()
                self._unanswered = 0
            time.sleep(_PERIOD)

    def _watch_service(self) -> None:
        # Periods are counted, not seconds: this process may have been suspended.
        while not self.leaving:
            time.sleep(_PERIOD)
            self._unanswered += 1
            if self._unanswered * _PERIOD > _DEAD_SECONDS:
                self._end(
                    f"{self._name(0)} has not answered for {_DEAD_SECONDS:.0f} s: its host is gone, or it hangs", 1
                )

    def _read(self) -> None:
        for index, (message, status) in self._failed().items():
            if index != self.index:
                self._end(f"{self._name(index)}: {message}", status)
        left, alive = self._get("left"), self._get("alive")
        now = time.monotonic()
        for index in range(self.count):
            beat = alive.get(index, "")
            if index not in self._seen or self._seen[index][0] != beat:
                self._seen[index] = (beat, now)
            elif index not in left and now - self._seen[index][1] > _DEAD_SECONDS:
                self._end_for_silence(index)
        if self._wanted:
            self._set(f"stop/{self.index}", str(self._wanted))
        if not self._stop_at and (wanted := self._get("stop")):
            self._agree(int(wanted[min(wanted)]))

    def _agree(self, number: int) -> None:
        """Sets the call of `poll` at which all stop: the one after the last that any process has made."""
        with self._lock:
            self._set(f"calls/{self.index}", str(self._calls), raising=True)
            deadline = time.monotonic() + _DEAD_SECONDS
            while len(calls := self._get("calls")) < self.count:
                self._unanswered = 0
                if time.monotonic() > deadline:
                    self._end_for_silence(min(set(range(self.count)) - calls.keys()))
                time.sleep(_PERIOD / 5)
            self._stop_at = max(map(int, calls.values())) + 1
            self._signal = number

    def _end_for_silence(self, index: int) -> NoReturn:
        self._set(f"left/{index}", "")  # it is not waited for
        silent = f"has given no sign of life for {_DEAD_SECONDS:.0f} s: it was killed, or hangs"
        self._end(f"{self._name(index)} {silent}", 1)

    def _end(self, message: str, status: int) -> NoReturn:
        if self.leaving:  # the main thread ends the process
            time.sleep(60)
        self.leaving = True
        print(f"error: {message}; this process ends too", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        if self._unanswered * _PERIOD <= _DEAD_SECONDS:
            self._leave()
        os._exit(status)

    def _leave(self) -> None:
        """Says that this process ends; the first process, with the store, waits until all have."""
        self._set(f"left/{self.index}", "")
        deadline = time.monotonic() + _LEAVING_SECONDS
        with contextlib.suppress(Exception):
            while self.index == 0 and len(self._get("left")) < self.count and time.monotonic() < deadline:
                time.sleep(_PERIOD / 5)

    def _failed(self) -> dict[int, tuple[str, int]]:
        if len(self._names) < self.count:
            self._names = self._get("name")
        return {index: tuple(json.loads(value)) for index, value in self._get("failed").items()}

    def _name(self, index: int) -> str:
        return f"process {index} ({self._names[index]})" if index in self._names else f"process {index}"

    def _get(self, name: str) -> dict[int, str]:
        return {int(key.rsplit("/", 1)[1]): value for key, value in self._client.key_value_dir_get(f"{_KEY}/{name}/")}

    def _set(self, name: str, value: str, raising: bool = False) -> None:
        with contextlib.nullcontext() if raising else contextlib.suppress(Exception):
            self._client.key_value_set(f"{_KEY}/{name}", value, allow_overwrite=True)


PEERS: Peers | None = None  # of this program, if it has several processes


def connect(address: str, count: int | None, index: int | None) -> None:
    """Connects the processes of a program.

    Args:
      address: HOST:PORT of the first process.
      count, index: the number of processes and the index of this one; None: those of the scheduler.

    Raises:
      InputError: the address cannot be reached.
      RuntimeError, ValueError: of `jax.distributed.initialize`.
    """
    global PEERS
    import jax  # slow to import
    from jax._src import distributed  # its key-value store has no public name

    seconds = _connect_seconds()
    connected = threading.Event()

    def watch() -> None:
        if not connected.wait(seconds):
            others = [other for other in range(count or 0) if other != index]
            if others and index:
                others = [0] if not lost_service.listens(address) else [other for other in others if other]
            names = f"process {others[0]}" if len(others) == 1 else "not all of the other processes"
            missing = f"{names} has not connected" if len(others) == 1 else f"{names} have connected"
            print(
                f"error: {missing} to {address} (JAX_COORDINATOR_ADDRESS) within {seconds:.0f} s; start every process "
                f"with the same address, or set {CONNECT_VARIABLE}",
                file=sys.stderr,
                flush=True,
            )
            os._exit(2)

    threading.Thread(target=watch, name="connecting", daemon=True).start()
    try:
        with lost_service.reported(address, lambda: PEERS is not None and PEERS.leaving):
            jax.distributed.initialize(
                num_processes=count,
                process_id=index,
                initialization_timeout=int(seconds) + 60,  # it would end the process by an abort
                shutdown_timeout_seconds=30,
            )
    finally:
        connected.set()
    stopping.start()  # JAX handles SIGTERM since it is initialized
    if distributed.global_state.num_processes > 1:
        state = distributed.global_state
        PEERS = Peers(state.client, state.process_id, state.num_processes)


def _connect_seconds() -> float:
    given = os.environ.get(CONNECT_VARIABLE, str(_CONNECT_SECONDS))
    try:
        return float(given)
    except ValueError as error:
        raise InputError(f"{CONNECT_VARIABLE} is {given!r}; expected a number of seconds") from error


def fail(message: str, status: int) -> None:
    """Tells the other processes, if there are any, that this one ends."""
    if PEERS is not None:
        PEERS.fail(message, status)


def stop_signal(request: stopping.StopRequest) -> int:
    """Returns the signal for which to stop now, the same in all processes; 0: none. All must make the same calls."""
    if PEERS is None:
        return request.number
    if request.number:
        PEERS.want_stop(request.number)
    return PEERS.poll()
