"""Features of a dataset, kept on disk, and the dataset whose rows hold them in place of tokens.

The features of a readout are the vector that the reward head reads there. Axis letters: n comparisons, R readouts of
the dataset or of a row, D features, M microbatches, B rows.
"""

import dataclasses
import os
import pathlib
import shutil

import numpy as np
import tensorstore as ts

from rmjax.core.errors import InputError
from rmjax.data.schema import PER_TOKEN, Tree
from rmjax.data.tokens.dataset import TokenizedDataset

_CHUNK_BYTES = 1 << 20  # a chunk is read as a whole
_CACHE_BYTES = 1 << 30  # of chunks in memory; features beyond it are read from disk in every step
_DONE = "done.npy"


class FeatureStore:
    """An array [R, D] in the directory `path`, and which of the n comparisons have their features in it.

    The array is a zarr3 array of TensorStore with a CRC-32C of each chunk. What was never written is NaN. A killed
    writer leaves a part of the comparisons, to which the next one adds. Only one process may write.

    Args:
      shape: of the array.
      dtype: of the array.
      comparisons: n.

    Raises:
      OSError: the directory cannot be written.
    """

    def __init__(self, path: pathlib.Path, shape: tuple[int, int], dtype: str, comparisons: int):
        self.path = path
        self.done = self._read_done(comparisons)  # bool [n]
        try:
            self._array = self._open(shape, dtype)
        except ValueError:  # damaged
            shutil.rmtree(path, ignore_errors=True)
            self.done[:] = False
            try:
                self._array = self._open(shape, dtype)
            except ValueError as error:
                raise OSError(_one_line(error)) from error

    def _read_done(self, comparisons: int) -> np.ndarray:
        try:
            done = np.load(self.path / _DONE)
        except (OSError, ValueError, EOFError):
            done = np.zeros(0, bool)
        usable = done.dtype == bool and done.shape == (comparisons,) and (self.path / "zarr.json").exists()
        return done if usable else np.zeros(comparisons, bool)

    def _open(self, shape: tuple[int, int], dtype: str) -> ts.TensorStore:
        rows = max(1, _CHUNK_BYTES // (shape[1] * ts.dtype(dtype).numpy_dtype.itemsize))
        metadata = {
            "shape": shape,
            "data_type": dtype,
            "fill_value": "NaN",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [rows, shape[1]]}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        }
        files = {"driver": "file", "path": f"{self.path.absolute()}/"}
        context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        spec = {"driver": "zarr3", "kvstore": files, "metadata": metadata}
        return ts.open(spec, open=True, create=True, context=context).result()

    def write(self, comparisons: np.ndarray, readouts: np.ndarray, values: np.ndarray) -> None:
        """Writes the features [len(readouts), D] of all readouts of these comparisons; raises OSError."""
        try:
            self._array[readouts].write(values).result()
        except ValueError as error:
            raise OSError(_one_line(error)) from error
        self.done[comparisons] = True
        partial = self.path / f"{_DONE}.part"
        with open(partial, "wb") as file:
            np.save(file, self.done)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path / _DONE)

    def read(self, readouts: np.ndarray) -> np.ndarray:
        """Returns the features [len(readouts), D]; raises InputError if they are damaged or missing."""
        try:
            values = self._array[readouts].read().result()
        except ValueError as error:
            raise self._damaged(_one_line(error)) from error
        if not np.isfinite(values).all():
            raise self._damaged("some are missing or not finite")
        return values

    def _damaged(self, reason: str) -> InputError:
        return InputError(
            f"the features in {self.path} cannot be used ({reason}); remove this directory, and the next run computes "
            "them again"
        )


@dataclasses.dataclass(frozen=True)
class FeatureDataset(TokenizedDataset):
    """A dataset whose packed rows have one position for each readout, and `features` in place of tokens.

    Its `lengths` are still numbers of tokens; those of its trees are `readout_counts`.
    """

    store: FeatureStore

    def tree(self, i: int) -> Tree:
        """Returns comparison i with the indices of its readouts in the store as its tokens."""
        indices = np.arange(self.readout_offsets[i], self.readout_offsets[i + 1], dtype=np.int32)
        readouts = tuple((0, j) for j in range(len(indices)))
        tree = super().tree(i)
        return dataclasses.replace(tree, prefix=indices[:0], branches=(indices,), readouts=readouts, spans=())

    def model_inputs(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns packed rows [M, B, ...] with `features` [M, B, R, D], 0 at unused readouts, and without tokens."""
        used = batch["readout_group"] > 0
        found = self.store.read(np.take_along_axis(batch["tokens"], batch["readout_index"], axis=-1)[used])
        features = np.zeros((*used.shape, found.shape[-1]), found.dtype)
        features[used] = found
        rest = {name: leaf for name, leaf in batch.items() if name not in (*PER_TOKEN, "readout_index")}
        return rest | {"features": features}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
