"""Reading of safetensors directories tensor by tensor and slice by slice, and writing in shards."""

import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rmjax.core.errors import InputError
from rmjax.core.files import identify

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4 * 2**30  # maximum size of a shard


class TensorDirectory:
    """The tensors of a directory with `model.safetensors`, or with shards and an index.

    Args:
      extra: glob of further files, such as one of the head alone.
      single: name of the file, if there is no index.

    Attributes:
      config_file: the model's config.json.
      shapes: {name: shape} of all tensors.
      paths: {name: file} of all tensors.

    Raises:
      InputError: no weights, a missing or truncated file, or tensors that differ between index and files.
    """

    def __init__(self, directory: pathlib.Path, extra: str = "", single: str = SINGLE):
        self.directory, self.config_file = directory, directory / "config.json"
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.paths: dict[str, pathlib.Path] = {}
        self._files: dict[str, Any] = {}  # tensor name -> open file
        index = directory / INDEX
        try:
            indexed = json.loads(index.read_text())["weight_map"] if index.is_file() else None
            names = [single] if indexed is None else sorted(set(indexed.values()))
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index}: not a safetensors index ({error}); copy the file again") from error
        for name in names:
            self._open(directory / name)
        if indexed is not None and (wrong := indexed.keys() ^ self.shapes.keys()):
            raise InputError(
                f"{index}: the tensor {min(wrong)!r} is only in the index or only in the files ({len(wrong)} in all); "
                "copy the directory again"
            )
        for path in sorted(directory.glob(extra)) if extra else ():
            self._open(path)

    def _open(self, path: pathlib.Path) -> None:
        try:
            file = safe_open(path, framework="numpy")
            tensors = list(file.keys())
        except FileNotFoundError as error:
            others = sorted(other.name for end in ("bin", "gguf", "pth") for other in path.parent.glob(f"*.{end}"))
            fix = f"convert {others[0]} to safetensors" if others else "copy the directory again"
            raise InputError(f"{path}: missing; a model's weights must be in safetensors: {fix}") from error
        except (SafetensorError, OSError) as error:
            reason = f"truncated or not a safetensors file ({error}); copy it again"
            raise InputError(f"{path}: {identify(path, by_name=False) or reason}") from error
        for name in tensors:
            if name in self.shapes:
                raise InputError(f"{path}: the tensor {name!r} is in another file too; remove one of them")
            self._files[name], self.paths[name] = file, path
            self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns tensor `name`, or its slice at `index`, in the file's dtype."""
        return self._files[name].get_slice(name)[index if index else slice(None)]


def write(
    directory: pathlib.Path, tensors: Iterable[tuple[str, Callable[[], np.ndarray], int]], single: str = SINGLE
) -> None:
    """Writes tensors as the file `single`, or as shards of at most `SHARD_BYTES` with an index.

    Args:
      directory: an existing directory.
      tensors: (name, function that returns the array, size in bytes); one shard at a time is held in memory.
    """
    shards: list[dict[str, Callable[[], np.ndarray]]] = [{}]
    size = total = 0
    for name, make, nbytes in tensors:
        if size + nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = make
        size += nbytes
        total += nbytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = single if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = {name: np.ascontiguousarray(make()) for name, make in shard.items()}
        (directory / file).touch()
        mode = (directory / file).stat().st_mode  # follows the umask; that of `save_file` does not
        save_file(arrays, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(mode)
        weight_map.update(dict.fromkeys(arrays, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
