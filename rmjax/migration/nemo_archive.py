"""The tensors of a .nemo archive, or of its directory: torch file, zarr arrays or torch-distributed files."""

import functools
import json
import lzma
import pathlib
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import tensorstore
import yaml

from rmjax.core.errors import InputError

CONFIG = "model_config.yaml"
_FILE, _DIRECTORY = "model_weights.ckpt", "model_weights"
_EXTRA = re.compile(r"(_extra_state|/shard_|common\.pt|rng_state|optimizer\.)")
Tensors = dict[str, Callable[[], np.ndarray]]  # {name: function that returns the array, float32}


def extract(path: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
    """Returns the directory with the files of an archive: `path` if it is one, else `directory`, to be filled.

    Raises:
      InputError: there is no such file, or it is no archive, or a damaged one.
    """
    if path.is_dir():
        return path
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with tarfile.open(path) as archive:
            archive.extractall(directory, filter="data")  # refuses paths outside of the directory
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{path}: not a complete tar archive ({error}); expected a .nemo file") from error
    return directory


def read_config(directory: pathlib.Path) -> dict[str, Any]:
    """Returns the contents of model_config.yaml; raises InputError if the file is missing or not valid."""
    found = sorted(directory.rglob(CONFIG))
    if not found:
        raise InputError(f"{directory}: {CONFIG} is missing; expected a .nemo archive of NeMo 1 (nemo.collections.nlp)")
    try:
        values = yaml.safe_load(found[0].read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{found[0]}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InputError(f"{found[0]}: expected a mapping of keys to values")
    return values


def read_tensors(directory: pathlib.Path) -> Tensors:
    """Returns the tensors of an archive, by their names in Megatron.

    Raises:
      InputError: there are none, they are of tensor- or pipeline-parallel files, or PyTorch is needed and missing.
    """
    root = sorted(directory.rglob(CONFIG))[0].parent
    if (root / _FILE).is_file():
        return _torch_file(root / _FILE)
    weights = root / _DIRECTORY
    if (weights / ".metadata").is_file():
        return _distributed(weights)
    if weights.is_dir():
        return dict(_zarr(weights))
    if found := sorted(root.glob("*mp_rank_*")) + sorted(root.glob("tp_rank_*")):
        raise InputError(
            f"{found[0]}: weights of several tensor- or pipeline-parallel ranks in torch files, which rmjax does not "
            "join; save the model in NeMo with tensor and pipeline size 1, or as a distributed checkpoint"
        )
    raise InputError(f"{root}: neither {_FILE} nor {_DIRECTORY}/ is there; expected the weights of a .nemo archive")


def _zarr(directory: pathlib.Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Yields the zarr arrays of Megatron's distributed checkpoints, a directory each."""
    arrays = sorted(path.parent for path in directory.rglob(".zarray"))
    if not arrays:
        raise InputError(
            f"{directory}: holds no zarr arrays (.zarray); the checkpoint is incomplete, or of another form"
        )
    for path in arrays:
        name = path.relative_to(directory).as_posix().replace("/", ".")
        if not _EXTRA.search(name):
            yield name, functools.partial(_read_zarr, path)


def _read_zarr(path: pathlib.Path) -> np.ndarray:
    try:
        json.loads((path / ".zarray").read_text())
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path.absolute())}}
        store = tensorstore.open(spec, open=True, read=True).result()
        return np.asarray(store.read().result()).astype(np.float32)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: the zarr array cannot be read ({' '.join(str(error).split())[:200]})") from error


def _torch(path: pathlib.Path) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: weights in PyTorch's format, and PyTorch is not installed: pip install torch (the CPU build is "
            "enough); archives with zarr arrays need none"
        ) from error
    return torch


def _torch_file(path: pathlib.Path) -> Tensors:
    """Returns the tensors of a file of torch.save, of which only tensors are unpickled."""
    torch = _torch(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, torch and zipfile raise many types
        raise InputError(f"{path}: not a file of tensors ({' '.join(str(error).split())[:200]})") from error
    values = values.get("state_dict", values) if isinstance(values, dict) else values
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds {type(values).__name__}; expected {{name: tensor}}")
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    return {name: functools.partial(_array, value) for name, value in tensors.items() if not _EXTRA.search(name)}


def _array(tensor: Any) -> np.ndarray:
    return tensor.float().numpy()


def _distributed(directory: pathlib.Path) -> Tensors:
    """Returns the tensors of a torch-distributed checkpoint, whose `.metadata` is a pickle: it must be trusted."""
    torch = _torch(directory)
    from torch.distributed import checkpoint

    try:
        reader = checkpoint.FileSystemReader(str(directory))
        found: dict[str, Any] = reader.read_metadata().state_dict_metadata
        wanted = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in found.items()
            if hasattr(entry, "size") and not _EXTRA.search(name)
        }
        checkpoint.load(wanted, storage_reader=reader, no_dist=True)
    except Exception as error:  # pickle and torch raise many types
        raise InputError(f"{directory}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    return {name: functools.partial(_array, value) for name, value in wanted.items()}
