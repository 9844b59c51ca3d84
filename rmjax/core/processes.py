"""Agreement between the processes of a multi-host run: errors and equality of data."""

import contextlib
from collections.abc import Iterator

import numpy as np
from jax.experimental import multihost_utils

from rmjax.core.errors import InputError


@contextlib.contextmanager
def synchronized_errors() -> Iterator[None]:
    """Raises an error in all processes if the body raises in one, so that no process waits for a failed one.

    Raises:
      InputError: another process failed.
    """
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    failed = multihost_utils.process_allgather(np.array(error is not None))
    if error is not None:
        raise error
    if failed.any():
        raise InputError("another process failed; see its error message")


def of_first(number: int) -> int:
    """Returns the number, below 2³¹, that the first process has."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def all_equal(digest: bytes) -> bool:
    """Returns whether `digest` is the same in all processes."""
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    return bool((digests == digests[0]).all())
