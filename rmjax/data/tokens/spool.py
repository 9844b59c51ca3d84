"""Tokens written to a file while they are made, so that those of a large source need no memory."""

import io
import os
import pathlib
from typing import Any

import numpy as np


class TokenSpool:
    """An int32 array that grows, in a .npy file; in memory without a file, or from the first failed write on.

    Args:
      path: of the file; None: in memory.
    """

    def __init__(self, path: pathlib.Path | None):
        self.error: OSError | None = None
        self._path, self._count = path, 0
        self._parts: list[np.ndarray] = []
        self._file: io.FileIO | None = None
        if path is not None:
            try:
                self._file = open(path, "wb", buffering=0)  # noqa: SIM115, closed by `finish`
                _write(self._file, _header(0))
            except OSError as error:
                self._to_memory(error)

    def append(self, tokens: np.ndarray) -> None:
        """Appends tokens int32 [n]."""
        if self._file is None:
            self._parts.append(tokens)
            return
        try:
            _write(self._file, np.ascontiguousarray(tokens, np.int32).tobytes())
            self._count += len(tokens)
        except OSError as error:
            self._to_memory(error)
            self._parts.append(tokens)

    def finish(self) -> np.ndarray:
        """Returns the tokens, int32; memory-mapped if they are in the file."""
        if self._file is not None and self._path is not None:
            try:
                self._file.seek(0)
                _write(self._file, _header(self._count))
                os.fsync(self._file.fileno())  # else a power failure could leave zeros in a file that is kept
                self._file.close()
                return np.load(self._path, mmap_mode="r")
            except OSError as error:
                self._to_memory(error)
        return np.concatenate([np.zeros(0, np.int32), *self._parts])

    def _to_memory(self, error: OSError) -> None:
        """Reads back what is in the file: the disk is full, or cannot be written."""
        self.error = error
        if self._path is not None and self._count:
            with open(self._path, "rb") as file:
                file.seek(len(_header(0)))
                self._parts.append(np.frombuffer(file.read(4 * self._count), np.int32))
        if self._file is not None:
            self._file.close()
            self._file = None


def _write(file: io.FileIO, data: bytes) -> None:
    """Writes all of the data: a write to a disk that is nearly full may write a part."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _header(count: int) -> bytes:
    """Returns the header of a .npy file, whose length does not depend on the count."""
    out = io.BytesIO()
    fields: dict[str, Any] = {"descr": "<i4", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(out, fields)
    return out.getvalue()
