"""Two-way tables between Hugging Face's tensor names and our parameter tree, and what reads and writes by them."""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from rmjax.core import pytree, safetensors
from rmjax.core.errors import InputError
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families.llama import LLAMA, UNUSED, UNUSED_SUFFIX

_TABLE = {ours: (theirs, transposed) for ours, theirs, transposed in LLAMA}
HEAD = "head/kernel"


def load(path: pathlib.Path, model: RewardModel, shardings: Any, *, fresh_head: jax.Array | None) -> Params:
    """Reads the parameters of `model` from a Hugging Face directory, each device's slice alone.

    Args:
      path: a directory with config.json and safetensors, of a causal LM or a sequence classifier.
      shardings: NamedSharding of every parameter.
      fresh_head: float32 [D, A], used where the files hold no `score.weight`; None: that is an error.

    Raises:
      InputError: a tensor is missing, misshapen or not known, or no head is there; names the tensor.
    """
    files = safetensors.TensorDirectory(path)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    known = set(UNUSED)

    def read(name: str, leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
        theirs, transposed = _TABLE[name]
        if name == HEAD and theirs not in files.shapes and fresh_head is not None:
            return jax.device_put(fresh_head, sharding)
        stacked = "{}" in theirs
        each = leaf.shape[1:] if stacked else leaf.shape
        names = [theirs.format(i) for i in range(leaf.shape[0])] if stacked else [theirs]
        for tensor in names:
            known.add(tensor)
            _check_shape(path, files, tensor, each[::-1] if transposed else each)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            layers, inner = (names[index[0]], index[1:]) if stacked else (names, index)
            inner = inner[::-1] if transposed else inner
            arrays = (files.read(tensor, inner).astype(leaf.dtype) for tensor in layers)
            arrays = [array.T if transposed else array for array in arrays]
            return np.stack(arrays) if stacked else arrays[0]

        return jax.make_array_from_callback(leaf.shape, sharding, part)

    params = jax.tree.map(read, pytree.map_paths(lambda name, _: name, abstract), abstract, shardings)
    unknown = sorted(name for name in files.shapes if name not in known and not name.endswith(UNUSED_SUFFIX))
    if unknown:
        raise InputError(
            f"{path}: the tensor {unknown[0]!r} {files.shapes[unknown[0]]} is not known for this "
            f"configuration ({len(unknown)} such); is config.json the right one?"
        )
    return params


def has_head(path: pathlib.Path) -> bool:
    """Returns whether the directory's weights hold a reward head."""
    return _TABLE[HEAD][0] in safetensors.TensorDirectory(path).shapes


def _check_shape(path: pathlib.Path, files: safetensors.TensorDirectory, tensor: str, shape: tuple[int, ...]) -> None:
    if tensor not in files.shapes:
        hint = "; a reward model needs its head" if tensor == _TABLE[HEAD][0] else "; is config.json the right one?"
        raise InputError(f"{path}: the tensor {tensor!r} is missing{hint}")
    if files.shapes[tensor] != tuple(shape):
        raise InputError(
            f"{path}: the tensor {tensor!r} has shape {files.shapes[tensor]}, but config.json asks for {tuple(shape)}"
        )


def named_tensors(params: Params) -> Iterator[tuple[str, Any, int]]:
    """Yields (Hugging Face name, function that makes the array, bytes) of every parameter."""
    for name, leaf in pytree.flatten(params).items():
        theirs, transposed = _TABLE[name]
        if "{}" not in theirs:
            yield theirs, lambda leaf=leaf, t=transposed: _host(leaf, t), leaf.nbytes
            continue
        for layer in range(leaf.shape[0]):
            make = lambda leaf=leaf, layer=layer, t=transposed: _host(leaf[layer], t)
            yield theirs.format(layer), make, leaf.nbytes // leaf.shape[0]


def _host(array: jax.Array, transposed: bool) -> np.ndarray:
    array = np.asarray(array)
    return array.T if transposed else array
