"""Safetensors directories, read lazily and slice by slice, and written in shards."""

import json
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rmjax.core.errors import InputError

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4 * 2**30  # as Hugging Face splits its checkpoints


class TensorDirectory:
    """The tensors of a directory with `model.safetensors`, or shards and their index.

    Attributes:
      shapes: {name: shape} of every tensor in the files.

    Raises:
      InputError: no weights, a missing shard, a truncated file, or a tensor that the index and the files disagree on.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self._files = {}  # tensor name -> open file
        self.shapes: dict[str, tuple[int, ...]] = {}
        index, single = directory / INDEX, directory / "model.safetensors"
        if index.is_file():
            try:
                expected = json.loads(index.read_text())["weight_map"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise InputError(f"{index}: not a safetensors index ({error}); copy the file again") from error
            names = sorted(set(expected.values()))
        elif single.is_file():
            expected, names = None, [single.name]
        else:
            raise InputError(
                f"{directory}: neither model.safetensors nor {INDEX} is there; weights in other "
                "formats (.bin, .gguf) must be converted to safetensors first"
            )
        for name in names:
            self._open(directory / name)
        if expected is not None and (wrong := set(expected) ^ set(self.shapes)):
            raise InputError(
                f"{index}: index and files disagree on the tensor {sorted(wrong)[0]!r} "
                f"({len(wrong)} in all); copy the directory again"
            )

    def _open(self, path: pathlib.Path) -> None:
        try:
            file = safe_open(path, framework="numpy")
            names = list(file.keys())
        except FileNotFoundError as error:
            raise InputError(f"{path}: this shard is named by {INDEX} but missing; copy it again") from error
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: truncated or not a safetensors file ({error}); copy it again") from error
        for name in names:
            if name in self.shapes:
                raise InputError(f"{path}: the tensor {name!r} stands in two files; remove one")
            self._files[name] = file
            self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Reads tensor `name`, or only its part at `index`, as an array of the file's dtype."""
        return self._files[name].get_slice(name)[index if index else slice(None)]


def write(directory: pathlib.Path, tensors: Iterable[tuple[str, Callable[[], np.ndarray], int]]) -> None:
    """Writes tensors as `model.safetensors`, or as shards of at most `SHARD_BYTES` with an index.

    Args:
      directory: exists.
      tensors: (name, function that makes the array, its bytes); made one shard at a time.
    """
    shards: list[list[tuple[str, Callable[[], np.ndarray]]]] = [[]]
    size = total = 0
    for name, make, bytes_ in tensors:
        if size + bytes_ > SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append((name, make))
        size += bytes_
        total += bytes_
    files = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = {name: np.ascontiguousarray(make()) for name, make in shard}
        save_file(arrays, directory / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(arrays, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
