"""Files of a run's state: checked reading, JSON files with a checksum of themselves, and checksums of directories.

The checksum is XXH3-128: it finds accidental changes as reliably as SHA-256, and costs less than reading the file
(11 GB/s from the page cache with one thread; SHA-256: 1.3 GB/s).
"""

import concurrent.futures
import json
import os
import pathlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import xxhash

from rmjax.core.errors import InputError
from rmjax.core.files import read_json, write_atomic
from rmjax.core.json_text import parse

SUMS_FILE = "sums.json"
_SEAL = "file_checksum"  # key of a sealed JSON file
_CHUNK = 1 << 20  # bytes read at once
_THREADS = 8
Types = Mapping[str, type | tuple[type, ...]]


class StateWarning(UserWarning):
    """Damage that was passed over, or files that cannot be verified; programs print it as one line."""


def warn(message: str) -> None:
    """Warns the user with one line, once for each text in a process."""
    warnings.warn(message, StateWarning, stacklevel=3)


def read_object(path: pathlib.Path, required: Types | None = None) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Args:
      required: keys that the object must have, and the types of their values.

    Raises:
      InputError: the file is missing, empty, cut or not an object, or lacks a required key.
    """
    value = read_json(path)
    for key, kind in (required or {}).items():
        if not isinstance(value.get(key), kind):
            found = f"is {value[key]!r:.60}" if key in value else "is missing"
            names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise InputError(f"{path}: {key!r} {found}; expected a value of type {names}: restore the file")
    return value


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the object with a checksum of its contents."""
    return dict(value) | {_SEAL: _content_sum(value)}


def write_sealed(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Writes an object with a checksum of its contents, atomically."""
    write_atomic(path, json.dumps(seal(value), indent=1) + "\n")


def read_sealed(path: pathlib.Path, required: Types | None = None) -> dict[str, Any]:
    """Returns the object in a file, verified if it has a checksum (files of older versions have none).

    Raises:
      InputError: as `read_object`, or the contents do not have their checksum.
    """
    value = read_object(path)
    if (expected := value.pop(_SEAL, None)) is not None and expected != _content_sum(value):
        raise InputError(f"{path}: damaged or edited (its contents do not have its {_SEAL}); restore the file")
    for key, kind in (required or {}).items():
        if not isinstance(value.get(key), kind):
            read_object(path, required)  # raises, naming the key
    return value


def _content_sum(value: Mapping[str, Any]) -> str:
    contents = {key: part for key, part in value.items() if key != _SEAL}
    return xxhash.xxh3_128_hexdigest(json.dumps(contents, sort_keys=True).encode())


def file_sum(path: pathlib.Path, size: int | None = None) -> list[Any]:
    """Returns [bytes, checksum] of a file, or of its first `size` bytes."""
    digest, left = xxhash.xxh3_128(), path.stat().st_size if size is None else size
    buffer = memoryview(bytearray(_CHUNK))
    count = 0
    with open(path, "rb", buffering=0) as file:
        while left > 0 and (read := file.readinto(buffer[: min(left, _CHUNK)])):
            digest.update(buffer[:read])
            count, left = count + read, left - read
    return [count, digest.hexdigest()]


def text_sum(text: str) -> list[Any]:
    """Returns what `file_sum` returns of a file with this text."""
    content = text.encode()
    return [len(content), xxhash.xxh3_128_hexdigest(content)]


def file_sums(directory: pathlib.Path, without: Iterable[str] = ()) -> dict[str, list[Any]]:
    """Returns {relative path: `file_sum`} of all files in a directory, except `without`."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    names = [path.relative_to(directory).as_posix() for path in files]
    chosen = [name for name in names if name not in {SUMS_FILE, *without}]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(chosen, pool.map(lambda name: file_sum(directory / name), chosen), strict=True))


def write_sums(directory: pathlib.Path, sums: Mapping[str, list[Any]], **more: Any) -> None:
    """Writes the checksums of a directory's files, and further contents, to its sums.json."""
    write_sealed(directory / SUMS_FILE, {"algorithm": "xxh3_128", "files": dict(sums), **more})


def read_sums(directory: pathlib.Path) -> dict[str, Any] | None:
    """Returns the contents of a directory's sums.json; None if it has none.

    Raises:
      InputError: the file is damaged.
    """
    path = directory / SUMS_FILE
    return read_sealed(path, {"files": dict}) if path.exists() else None


def find_damage(
    directory: pathlib.Path,
    sums: Mapping[str, Any],
    names: Iterable[str] | None = None,
    share: tuple[int, int] = (0, 1),
) -> list[str]:
    """Returns what is wrong with the files of a directory, a text for each file that is not as its sums.json says.

    Args:
      sums: from `read_sums`.
      names: files to verify, if they have a checksum; None: all.
      share: (i, n): verify only every n-th file, from the i-th on in order of size.
    """
    files: Mapping[str, list[Any]] = sums["files"]
    chosen = sorted(files if names is None else files.keys() & set(names), key=lambda name: (files[name][0], name))
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        faults = pool.map(lambda name: _fault(directory / name, files[name]), chosen[share[0] :: share[1]])
        return [fault for fault in faults if fault]


def _fault(path: pathlib.Path, expected: list[Any]) -> str:
    try:
        size = path.stat().st_size
        if size != expected[0]:
            return f"{path} has {size:,} bytes instead of {expected[0]:,}"
        return "" if file_sum(path) == expected else f"{path} does not have its checksum"
    except OSError as error:
        return f"{path} cannot be read ({os.strerror(error.errno or 0)})"


def check_files(directory: pathlib.Path, prefix: str = "") -> None:
    """Verifies the files of a directory whose names in its sums.json start with `prefix`.

    Without sums.json, this is reported in a warning.

    Raises:
      InputError: a file is missing or has another checksum.
    """
    if (sums := read_sums(directory)) is None:
        warn_unverified(directory)
    elif faults := find_damage(directory, sums, [name for name in sums["files"] if name.startswith(prefix)]):
        raise InputError(f"{faults[0]}: damaged or edited since it was written; restore the file")


def warn_unverified(directory: pathlib.Path) -> None:
    """Warns that a directory has no checksums."""
    warn(f"{directory} was written by an older version of rmjax, without checksums: damage is not noticed")


def read_lines(path: pathlib.Path, required: Types) -> list[dict[str, Any]]:
    """Returns the objects of a JSON lines file that is appended to; [] if there is none.

    A last line without its end (the process was killed) is left out.

    Raises:
      InputError: another line is not an object with the required keys; names the line.
    """
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True) if path.exists() else (), 1):
        try:
            line = parse(text)
        except ValueError:
            line = None
        if not (isinstance(line, dict) and all(isinstance(line.get(key), kind) for key, kind in required.items())):
            if not text.endswith(b"\n"):
                break
            raise InputError(f"{path}:{number}: a damaged line, {text[:40]!r}; remove the line, or restore the file")
        lines.append(line)
    return lines
