"""Reading of safetensors directories tensor by tensor and slice by slice, and writing in shards."""

import json
import pathlib
import shlex
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rmjax.core.errors import InputError
from rmjax.core.files import identify
from rmjax.core.json_text import parse
from rmjax.core.os_errors import saving

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4 * 2**30  # maximum size of a shard
_MAPPED = 64 * 2**20  # bytes that are read before files are opened anew: what was read stays mapped until then
_DTYPES = ("F64", "F32", "F16", "BF16")  # of weights, by the names in safetensors files
_CONVERT = (
    "import glob, torch, safetensors.torch as s; t = {{}}; "
    '[t.update(torch.load(f, map_location="cpu", weights_only=True)) for f in sorted(glob.glob({pattern}))]; '
    "s.save_file({{k: v.clone().contiguous() for k, v in t.items()}}, {output})"
)


class TensorDirectory:
    """The tensors of a directory with `model.safetensors`, or with shards and an index.

    Args:
      extra: glob of further files, such as one of the head alone.
      single: name of the file, if there is no index.

    Attributes:
      config_file: the model's config.json.
      shapes: {name: shape} of all tensors.
      dtypes: {name: dtype} of all tensors, by the names in the files, such as F32 and BF16.
      paths: {name: file} of all tensors.

    Raises:
      InputError: no weights, a missing or truncated file, or tensors that differ between index and files.
    """

    def __init__(self, directory: pathlib.Path, extra: str = "", single: str = SINGLE):
        self.directory, self.config_file = directory, directory / "config.json"
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.paths: dict[str, pathlib.Path] = {}
        self._files: dict[pathlib.Path, Any] = {}  # open files
        self._mapped = 0  # bytes that were read from them
        index = directory / INDEX
        try:
            indexed = parse(index.read_text())["weight_map"] if index.is_file() else None
            names = [single] if indexed is None else sorted({pathlib.Path(name).name for name in indexed.values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index}: not a safetensors index ({error}); copy the file again") from error
        for name in names:
            if indexed is not None and not (directory / name).exists():
                raise InputError(f"{directory / name}: missing, and {INDEX} names it; copy the directory again")
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
            raise InputError(
                f"{path}: missing; a model's weights must be in safetensors: {_find_others(path)}"
            ) from error
        except (SafetensorError, OSError) as error:
            reason = f"truncated or not a safetensors file ({error}); copy it again"
            raise InputError(f"{path}: {identify(path, by_name=False) or reason}") from error
        for name in tensors:
            if name in self.shapes:
                raise InputError(f"{path}: the tensor {name!r} is in another file too; remove one of them")
            self.paths[name] = path
            stored = file.get_slice(name)
            self.shapes[name], self.dtypes[name] = tuple(stored.get_shape()), stored.get_dtype()

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns tensor `name`, or its slice at `index`, in the file's dtype.

        Raises:
          InputError: the tensor's values are integers, booleans, complex, or floats of 8 bits or less.
        """
        if (dtype := self.dtypes[name]) not in _DTYPES:
            raise InputError(
                f"{self.paths[name]}: the tensor {name!r} has the dtype {dtype}; expected one of {', '.join(_DTYPES)}: "
                "if the weights are quantized, give the model in bfloat16 or float32 that it was made from"
            )
        path = self.paths[name]
        if self._mapped > _MAPPED:
            self._files.clear()
            self._mapped = 0
        try:
            if path not in self._files:
                self._files[path] = safe_open(path, framework="numpy")
            array = self._files[path].get_slice(name)[index if index else slice(None)]
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: changed while it was read ({error}); restore it, and start again") from error
        self._mapped += array.nbytes
        return array


def _find_others(missing: pathlib.Path) -> str:
    """Returns what to do about a missing file, by the other files of weights beside it."""
    directory = missing.parent
    for ending in ("bin", "pth", "pt"):
        if others := sorted(path.name for path in directory.glob(f"*model*.{ending}")):
            pattern = directory / (others[0] if len(others) == 1 else f"*model*.{ending}")
            code = _CONVERT.format(pattern=json.dumps(str(pattern)), output=json.dumps(str(missing)))
            return f"convert {others[0]}: python -c {shlex.quote(code)}"
    if others := sorted(path.name for path in directory.glob("*.gguf")):
        return f"{others[0]} is a GGUF model; give the Hugging Face directory that it was made from"
    return "copy the directory again"


def write(
    directory: pathlib.Path, tensors: Iterable[tuple[str, Callable[[], np.ndarray], int]], single: str = SINGLE
) -> None:
    """Writes tensors as the file `single`, or as shards of at most `SHARD_BYTES` with an index.

    Args:
      directory: an existing directory.
      tensors: (name, function that returns the array, size in bytes); one shard at a time is held in memory.

    Raises:
      InputError: the tensors cannot be written.
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
        with saving(directory / file):
            save_file(arrays, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(mode)
        weight_map.update(dict.fromkeys(arrays, file))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
