"""Agreement between the processes of a multi-host run: errors, and equality of configuration, code and data."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from rmjax.core import peers
from rmjax.core.errors import InputError

_SHOWN = 80  # characters of a value in a message


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
        known = peers.PEERS.failure()[0] if peers.PEERS is not None else ""
        raise InputError(known or f"process {np.argmax(failed)} failed; see its error message")


def of_first(number: int) -> int:
    """Returns the number, below 2³¹, that the first process has."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def all_equal(digest: bytes) -> bool:
    """Returns whether `digest` is the same in all processes."""
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    return bool((digests == digests[0]).all())


def check_same(values: Mapping[str, Any]) -> None:
    """Compares values between the processes, all of which must call it.

    Args:
      values: JSON values by name.

    Raises:
      InputError: one differs; names it, and both values.
    """
    if jax.process_count() == 1:
        return
    own = np.frombuffer(json.dumps(values, sort_keys=True, default=str).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(own)))).reshape(-1)
    gathered = multihost_utils.process_allgather(np.pad(own, (0, int(sizes.max()) - len(own))))
    found = [json.loads(part[:size].tobytes()) for part, size in zip(gathered, sizes, strict=True)]
    for index, other in enumerate(found[1:], 1):
        for name in sorted(found[0].keys() | other.keys()):
            pair = [repr(one.get(name))[:_SHOWN] for one in (found[0], other)]
            if found[0].get(name) != other.get(name):
                raise InputError(
                    f"{name} differs between processes: {pair[0]} in process 0, {pair[1]} in process {index}; start "
                    "all processes with the same command, code and files"
                )


@functools.cache
def code_version() -> dict[str, str]:
    """Returns the versions of the code that computes, with a checksum of the files of this package."""
    digest, package = hashlib.sha256(), pathlib.Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    versions = {f"the version of {name}": importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")}
    return {"the code of rmjax (checksum)": digest.hexdigest()[:16], **versions}
