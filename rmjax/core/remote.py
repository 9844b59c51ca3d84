"""Local copies of files and directories in object stores and on web servers (s3://, gs://, https://, …), by fsspec."""

import concurrent.futures
import functools
import hashlib
import json
import os
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

import filelock

from rmjax.core.errors import InputError
from rmjax.core.files import cache_directory, new_directory
from rmjax.core.progress import progress_bar

_URL = re.compile(r"[a-z][a-z0-9+.-]+://.+", re.IGNORECASE)
_ATTEMPTS = 5
_WAIT = 1.0  # seconds before the second attempt; doubled before each further one
_THREADS = 8
_PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_VERSION_KEYS = (
    "size",
    "ETag",
    "etag",
    "md5Hash",
    "generation",
    "crc32c",
    "mtime",
    "LastModified",
    "updated",
    "created",
)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a URL.

    >>> is_remote("gs://bucket/data.jsonl"), is_remote("runs/1"), is_remote("test=runs/a.jsonl")
    (True, False, False)
    """
    return _URL.fullmatch(os.fspath(path)) is not None


def glob(url: str) -> list[str]:
    """Returns the URLs that match a glob, sorted.

    Raises:
      InputError: the store cannot be reached, or nothing matches.
    """
    system, path = open_url(url)
    if not any(character in path for character in "*?["):
        return [url]
    found = sorted(retry(url, lambda: system.glob(path)))
    if not found:
        raise InputError(f"{url}: no file matches this glob")
    return [system.unstrip_protocol(match) for match in found]


def fetch(url: str) -> pathlib.Path:
    """Returns the local copy of a file or directory, in $RMJAX_CACHE/remote; it is downloaded if it is new or changed.

    Transient errors are tried again, with longer and longer waits. Processes that need the same copy wait for one of
    them to make it.

    Raises:
      InputError: it does not exist or cannot be read, or the package for this kind of URL is missing.
    """
    system, path = open_url(url)
    files = retry(url, lambda: system.find(path, detail=True))
    files = files or _single(url, system, path)
    root = path.rstrip("/")
    names = {name: name[len(root) :].lstrip("/") or root.rpartition("/")[2] for name in files}
    if any(".." in pathlib.PurePosixPath(name).parts for name in names.values()):
        raise InputError(f"{url}: a name of its files leads out of the directory ('..'); rename it")
    single = root in files
    state = [[names[name], *(str(files[name].get(key)) for key in _VERSION_KEYS)] for name in sorted(files)]
    version = hashlib.sha256(json.dumps([url, state]).encode()).hexdigest()[:24]
    target = cache_directory() / "remote" / version
    result = target / names[root] if single else target
    if result.exists():
        return result
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{target}.lock"):
        if not result.exists():
            download(url, system, files, names, target)
    return result


def open_url(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system of a URL and the path in it; raises InputError if its package is missing."""
    import fsspec  # slow to import, and only needed for URLs

    scheme = url.partition("://")[0].lower()
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        package = _PACKAGES.get(scheme)
        fix = f"install it: pip install {package}" if package else f"see fsspec's list of protocols ({error})"
        raise InputError(f"{url}: the package for {scheme}:// is missing; {fix}") from error
    except OSError as error:
        raise InputError(f"{url}: cannot be opened ({error}); check the address") from error
    return system, path


def _single(url: str, system: Any, path: str) -> dict[str, Any]:
    """Returns {path: details} of a file that `find` does not list, as on web servers."""
    try:
        details = retry(url, lambda: system.info(path))
    except FileNotFoundError:
        details = {"type": "missing"}
    if details.get("type") != "file":
        raise InputError(f"{url}: no such file or directory; check the address")
    return {path.rstrip("/"): details}


def download(
    url: str, system: Any, files: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], target: pathlib.Path
) -> None:
    """Downloads files {path: details} under their names into the new directory `target`; errors as in `fetch`."""
    sizes = {name: int(details.get("size") or 0) for name, details in files.items()}

    def get(name: str, part: pathlib.Path) -> int:
        local = part / names[name]
        local.parent.mkdir(parents=True, exist_ok=True)
        retry(url, lambda: system.get_file(name, str(local)))
        if sizes[name] and local.stat().st_size != sizes[name]:
            raise InputError(f"{url}: {names[name]} has {local.stat().st_size:,} bytes instead of {sizes[name]:,}")
        return sizes[name]

    with new_directory(target, target.with_name(f"{target.name}.part")) as part:
        bar = progress_bar(sum(sizes.values()) >> 20, f"download {url}", "MiB")
        with bar, concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            done = 0
            for size in pool.map(functools.partial(get, part=part), files):
                bar.update((done + size >> 20) - (done >> 20))
                done += size


def retry(url: str, function: Any, action: str = "read") -> Any:
    """Returns `function()`, called again after errors that may pass.

    Args:
      action: what the function does, for messages: `read` or `written`.

    Raises:
      InputError: it fails every time, or access is denied.
      FileNotFoundError: there is no such file.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return function()
        except FileNotFoundError:
            raise
        except Exception as error:  # each store has errors of its own
            if isinstance(error, InputError | NotImplementedError):
                raise
            if isinstance(error, _PERMANENT) or attempt == _ATTEMPTS - 1:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                hint = "check the credentials" if isinstance(error, PermissionError) else "try again later"
                raise InputError(f"{url}: cannot be {action} ({reason}); {hint}") from error
            time.sleep(_WAIT * 2**attempt)
    raise AssertionError
