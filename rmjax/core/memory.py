"""Memory that is left: on a device, on the host, within the limits of control groups; and whether an estimate fits."""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from rmjax.core.errors import InputError

CHECK = "RMJAX_CHECK_MEMORY"  # environment variable; 0: warn where a program would be refused
_NEAR = 0.9  # share of the memory that is left from which a program warns
_NO_LIMIT = 1 << 60  # bytes; control groups of version 1 give a number above this if there is none
_ROOT = pathlib.Path("/")


class MemoryWarning(UserWarning):
    """An estimate that is near the memory that is left; programs print it as one line."""


@dataclasses.dataclass(frozen=True)
class Available:
    """Memory that is left."""

    bytes: int
    source: str  # what limits it


def gib(size: float) -> str:
    """Returns a size as text.

    >>> gib(3 << 29), gib(1 << 20)
    ('1.50 GiB', '1.0 MiB')
    """
    return f"{size / 2**30:.2f} GiB" if size >= 1 << 27 else f"{size / 2**20:.1f} MiB"


def device_memory(device: Any) -> Available | None:
    """Returns the memory that is left on a `jax.Device`; None: not known, or a CPU, which has the host's."""
    statistics = None if device.platform == "cpu" else device.memory_stats()
    if not statistics or "bytes_limit" not in statistics:
        return None
    left = statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    return Available(left, f"of {gib(statistics['bytes_limit'])} on {device.device_kind}")


def host_memory(root: pathlib.Path = _ROOT) -> Available | None:
    """Returns the memory that is left on the host and within its control groups, whichever is less; None: not known.

    Args:
      root: of the file system.
    """
    found = [*_host(root), *_control_groups(root)]
    return min(found, key=lambda available: available.bytes, default=None)


def _host(root: pathlib.Path) -> list[Available]:
    path = root / "proc/meminfo"
    try:
        lines = (line.split() for line in path.read_text().splitlines())
        sizes = {parts[0].rstrip(":"): int(parts[1]) * 1024 for parts in lines if len(parts) > 1}
        return [Available(sizes["MemAvailable"] + sizes.get("SwapFree", 0), f"MemAvailable of {path}")]
    except (OSError, KeyError, ValueError):
        try:
            return [Available(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the host's whole memory")]
        except (ValueError, OSError, AttributeError):
            return []


def _control_groups(root: pathlib.Path) -> list[Available]:
    """Returns what the limits of the process's control groups leave, of the group itself and those that it is in.

    In a container, the path may be the host's, and the group is the root of what is mounted.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, name in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        group = top / name.lstrip("/")
        for directory in (group, *group.parents):
            if directory.is_relative_to(top) and (left := _left_in(directory, 1 if controllers else 2)):
                found.append(left)
    return found


def _left_in(group: pathlib.Path, version: int) -> Available | None:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    prefix = "" if version == 2 else "total_"
    try:
        limit, used = ((group / name).read_text().strip() for name in names)
        if limit == "max" or int(limit) > _NO_LIMIT:
            return None
        pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        sizes = {name: int(value) for name, value in pairs}
        cache = sum(sizes.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))  # is freed when needed
        return Available(max(int(limit) - max(int(used) - cache, 0), 0), f"of {gib(int(limit))} by {group / names[0]}")
    except (OSError, ValueError):
        return None


def describe(parts: Mapping[str, float]) -> str:
    """Returns the parts of an estimate as text; those without a share are left out.

    >>> describe({"parameters": 3 << 29, "moments": 0})
    'parameters 1.50 GiB'
    """
    return ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)


def check(what: str, parts: Mapping[str, float], available: Available | None, fix: Callable[[], str]) -> str:
    """Returns a warning if an estimate is near the memory that is left, else "".

    Args:
      what: what needs the memory.
      parts: bytes.
      fix: returns what to do if it does not fit.

    Raises:
      InputError: the estimate exceeds the memory that is left, and the variable `CHECK` is not 0.
    """
    total = sum(parts.values())
    if available is None or total <= _NEAR * available.bytes:
        return ""
    text = f"{what} needs about {gib(total)} ({describe(parts)}), and {gib(available.bytes)} are left "
    text += f"({available.source})"
    if total <= available.bytes or os.environ.get(CHECK) == "0":
        return f"{text}; if it ends for lack of memory: {fix()}"
    page = "docs/troubleshooting.md#out-of-memory"
    raise InputError(f"{text}; {fix()}. {CHECK}=0 starts it nevertheless", page=page)


def warn(message: str) -> None:
    """Warns the user with one line, if there is a message."""
    if message:
        warnings.warn(message, MemoryWarning, stacklevel=3)
