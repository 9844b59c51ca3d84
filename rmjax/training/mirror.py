"""Workdirs in object stores (gs://, s3://, …): a local copy, in which the run trains, and its upload.

A run needs a file system: metrics are appended to, checkpoints renamed when they are complete, and both locked. So it
has a local copy of its workdir, in $RMJAX_CACHE/workdirs, and a thread uploads what has changed. The store decides what
the run continues from. A marker in it changes with each upload: a machine whose copy has the same marker goes on with
that copy, which may be newer after a crash; others download.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import filelock
import jax

from rmjax.core import remote, state_files
from rmjax.core.errors import InputError
from rmjax.core.files import cache_directory, write_atomic

_MARKER = ".mirror.json"
_INTERVAL = 5.0  # seconds between two looks for changed files
_THREADS = 8
_UNKNOWN = (-1, -1)  # size and time of a file in the store that was not uploaded from this copy

_State = dict[str, tuple[int, int]]  # {name: size in bytes, time of the last change in ns}


def local_directory(url: str) -> pathlib.Path:
    """Returns the directory of the local copy of the workdir at a URL."""
    return cache_directory() / "workdirs" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:24]


@contextlib.contextmanager
def mirrored(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a directory for a run: `path` itself, or the local copy of a URL, which is uploaded until the end.

    Raises:
      InputError: the store cannot be read or written; or the copy is in use; or there are several processes.
    """
    if not remote.is_remote(path):
        yield pathlib.Path(path).expanduser()
        return
    if jax.process_count() > 1:
        raise InputError(
            f"workdir {path}: a run of {jax.process_count()} processes needs a shared file system; mount "
            "the bucket (Cloud Storage FUSE, Mountpoint for S3), or train in one process"
        )
    mirror = _Mirror(str(path))
    mirror.path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(f"{mirror.path}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(f"workdir {path}: another process of this machine trains in it; choose another one") from error
    with lock, mirror.uploading():
        yield mirror.path


class _Mirror:
    """The workdir at a URL and its local copy in `path`."""

    def __init__(self, url: str):
        self._url, self.path = url.rstrip("/"), local_directory(url)
        self._system, self._root = remote.open_url(self._url)
        self._note = self.path.with_name(f"{self.path.name}.json")  # the marker, and what has been uploaded
        self._uploaded: _State = {}
        self._marker = ""

    @contextlib.contextmanager
    def uploading(self) -> Iterator[None]:
        """Makes the copy, and uploads what changes in it until the end."""
        self._pull()
        self._mark()  # fails before the run starts if the store is read-only
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(ended,), name="upload", daemon=True)
        thread.start()
        try:
            yield
        except Exception:
            ended.set()
            thread.join()
            with contextlib.suppress(InputError):  # the first error says more
                self._push()
            raise
        finally:
            ended.set()
        thread.join()
        try:
            self._push()
        except InputError as error:
            raise InputError(f"{error}. The run is complete in {self.path}; the same command uploads it") from error

    def _pull(self) -> None:
        """Makes the local copy that of the store, unless it is its source."""
        found = {name: details for name, details in self._find().items() if name != _MARKER}
        note = json.loads(self._note.read_text()) if self._note.exists() else {}
        self._marker = self._read_marker()
        if self._marker and self._marker == note.get("marker"):
            self._uploaded = dict.fromkeys(found, _UNKNOWN) | {
                name: tuple(state) for name, state in note["files"].items()
            }
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self._note.unlink(missing_ok=True)
        # The checksums of a checkpoint are uploaded last: without them it is incomplete.
        complete = {name.rpartition("/")[0] for name in found if name.endswith(f"/{state_files.SUMS_FILE}")}
        wanted = {
            name: details
            for name, details in found.items()
            if not name.startswith("checkpoints/") or "/".join(name.split("/")[:2]) in complete
        }
        if wanted:
            paths = {f"{self._root}/{name}": details for name, details in wanted.items()}
            names = {f"{self._root}/{name}": name for name in wanted}
            remote.download(self._url, self._system, paths, names, self.path)
        self._uploaded = dict.fromkeys(found, _UNKNOWN) | {
            name: state for name, state in self._local().items() if name in wanted
        }

    def _find(self) -> dict[str, dict[str, Any]]:
        """Returns the details of the files in the store by their names in the workdir."""
        self._system.invalidate_cache()
        found = remote.retry(self._url, lambda: self._system.find(self._root, detail=True))
        return {name[len(self._root) :].lstrip("/"): details for name, details in found.items()}

    def _local(self) -> _State:
        """Returns the files of the copy that belong to the run and are complete."""
        found: _State = {}
        for folder, folders, names in os.walk(self.path):
            folders[:] = [name for name in folders if ".orbax-checkpoint-tmp" not in name]
            for name in names:
                path = pathlib.Path(folder, name)
                with contextlib.suppress(FileNotFoundError):  # of a checkpoint that is removed
                    status = path.stat()
                    found[path.relative_to(self.path).as_posix()] = status.st_size, status.st_mtime_ns
        return {name: state for name, state in found.items() if name != ".lock" and not name.endswith(".part")}

    def _push(self) -> None:
        """Uploads what has changed, and removes what is gone, in an order in which a reader finds a usable workdir."""
        files = self._local()
        changed = sorted((name for name in files if self._uploaded.get(name) != files[name]), key=_order)
        gone = [name for name in self._uploaded if name not in files]
        if not changed and not gone:
            return
        if self._read_marker() != self._marker:
            raise InputError(f"workdir {self._url}: another process writes to it; end one of them")
        for _, names in itertools.groupby(changed, _order):
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
                list(pool.map(lambda name: self._upload(name, files[name]), names))
        for name in gone:
            path = f"{self._root}/{name}"
            with contextlib.suppress(FileNotFoundError):
                self._write(functools.partial(self._system.rm_file, path))
            del self._uploaded[name]
        self._mark()

    def _upload(self, name: str, state: tuple[int, int]) -> None:
        self._uploaded[name] = _UNKNOWN  # a part of it may be in the store, whatever happens
        with contextlib.suppress(FileNotFoundError):  # removed by the run meanwhile
            self._write(lambda: self._system.put_file(str(self.path / name), f"{self._root}/{name}"))
            self._uploaded[name] = state

    def _mark(self) -> None:
        """Writes a new marker, first into the store."""
        marker = uuid.uuid4().hex
        text = json.dumps({"marker": marker}).encode()
        self._write(lambda: self._system.pipe_file(f"{self._root}/{_MARKER}", text))
        self._marker = marker
        write_atomic(self._note, json.dumps({"url": self._url, "marker": marker, "files": self._uploaded}))

    def _read_marker(self) -> str:
        """Returns the marker in the store; empty without one."""
        try:
            content = remote.retry(self._url, lambda: self._system.cat_file(f"{self._root}/{_MARKER}"))
        except FileNotFoundError:
            return ""
        return json.loads(content)["marker"]

    def _write(self, function: Callable[[], Any]) -> None:
        try:
            remote.retry(self._url, function, "written")
        except NotImplementedError as error:
            raise InputError(f"workdir {self._url}: this kind of URL cannot be written; use a store") from error

    def _watch(self, ended: threading.Event) -> None:
        warned = False
        while not ended.wait(_INTERVAL):
            try:
                self._push()
            except InputError as error:
                if not warned:
                    state_files.warn(f"{error}; the run goes on in {self.path}")
                warned = True


def _order(name: str) -> int:
    """Returns the place of a file in the upload: what a checkpoint refers to is there before its checksums."""
    if not name.startswith("checkpoints/"):
        return 1 if name == "config.json" else 0
    return 3 if name.endswith(f"/{state_files.SUMS_FILE}") else 2
