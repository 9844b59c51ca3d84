"""What the processes of one run, or of one scoring, agree on."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from rmjax.core.errors import InputError


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends in an error on all processes if its body does on one, so that none waits for another in vain.

    Raises:
      InputError: another process failed.
    """
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    every = multihost_utils.process_allgather(np.array(failed is not None)) if jax.process_count() > 1 else failed
    if failed is not None:
        raise failed
    if np.any(every):
        raise InputError("another process cannot go on; see its message")


def all_equal(digest: bytes) -> bool:
    """Returns whether all processes give the same bytes."""
    if jax.process_count() == 1:
        return True
    every = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    return bool((every == every[0]).all())
