"""The loss of JAX's coordination service, with process 0, as one line instead of an abort.

When the service is lost, jaxlib's client calls its `missed_heartbeat_callback` in a thread of its own. The default
aborts, also if `jax_enable_recoverability` is set, and `jax.distributed.initialize` has no parameter for another one.
jaxlib 0.10 cannot call one of Python's: the conversion of its argument, an absl::Status, throws std::bad_cast, which
ends in `std::terminate`. So the handler of that is set too, where jaxlib uses GNU's C++ library (Linux). Elsewhere
nothing is changed: JAX aborts the process.
"""

import contextlib
import ctypes
import functools
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

_LIBRARY, _SET_TERMINATE = "libstdc++.so.6", "_ZSt13set_terminatePFvvE"  # void (*set_terminate(void (*)()))()
_MAKE, _CALLBACK = "get_distributed_runtime_client", "missed_heartbeat_callback"
_CLOSING_SECONDS = 5.0  # in which a killed process closes its sockets
_HANDLER = ctypes.CFUNCTYPE(None)
_KEPT: list[Any] = []  # C++ keeps no reference


@contextlib.contextmanager
def reported(address: str, leaving: Callable[[], bool]) -> Iterator[None]:
    """Lets a client of the service, made in the body, end the process with one line when the service is lost.

    Args:
      address: HOST:PORT of the service.
      leaving: returns whether the process ends anyway; then it prints nothing.
    """

    def lost(*_: Any) -> NoReturn:
        if not leaving():
            print(
                f"error: process 0 ({address}), or its host, has ended or cannot be reached; this process ends too",
                file=sys.stderr,
                flush=True,
            )
        os._exit(1)

    from jax._src import lib  # the client has no public name

    module: Any = getattr(lib, "_jax", None)
    make: Any = getattr(module, _MAKE, None)
    if _CALLBACK not in (getattr(make, "__doc__", None) or "") or not _set_terminate_handler(address, lost, leaving):
        yield
        return
    setattr(module, _MAKE, functools.partial(make, **{_CALLBACK: lost}))
    try:
        yield
    finally:
        setattr(module, _MAKE, make)


def listens(address: str) -> bool:
    """Returns whether a process accepts connections at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 2).close()
        return True
    except (OSError, ValueError):
        return False


def _set_terminate_handler(address: str, lost: Callable[[], NoReturn], leaving: Callable[[], bool]) -> bool:
    """Calls `lost` when C++ terminates the process and the service does not listen; returns whether that is possible.

    After another C++ exception the former handler is called, which prints it and aborts.
    """
    try:
        # Without loading the library: jaxlib has, if it uses it.
        library = ctypes.CDLL(_LIBRARY, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        set_terminate = library[_SET_TERMINATE]
    except (OSError, AttributeError):
        return False
    former: Any = None

    def terminated() -> None:
        deadline = time.monotonic() + _CLOSING_SECONDS
        while listens(address) and not leaving():
            if time.monotonic() > deadline:
                former()
            time.sleep(0.1)
        lost()

    set_terminate.restype, set_terminate.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    handler = _HANDLER(terminated)
    former = _HANDLER(set_terminate(ctypes.cast(handler, ctypes.c_void_p)))
    _KEPT.append(handler)
    return True
