"""Reading and writing of parameters as Hugging Face tensors, by the tensor names of the model family."""

import functools
import re
from collections.abc import Callable, Iterator, Set

import jax
import numpy as np
from jax.sharding import Mesh

from rmjax.core import pytree, safetensors
from rmjax.core.errors import InputError
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families import FAMILIES
from rmjax.models.heads import suggest_name
from rmjax.models.sharding import state_shardings

_HEAD = "head/kernel"
_CHECK_CONFIG = "check that config.json belongs to these weights"


def load(
    files: safetensors.TensorDirectory,
    model: RewardModel,
    mesh: Mesh,
    head: np.ndarray | jax.Array,
    head_tensors: Set[str] = frozenset(),
) -> Params:
    """Returns the parameters of `model` from a Hugging Face directory; each device reads only its shards.

    Args:
      files: of a causal LM, or of a model with a reward head.
      head: float32 [D, A], the head's weights (`rmjax.models.heads`).
      head_tensors: names of the tensors that they were read from.

    Raises:
      InputError: a tensor is missing, unknown or has another shape; names the tensor.
    """
    path, family = files.directory, FAMILIES[model.family]
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    table, used = {row.path: row for row in family.tensors}, set(head_tensors)

    def read(parameter: str, leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
        _, tensor, transposed = table[parameter]
        if parameter == _HEAD:
            return jax.make_array_from_callback(leaf.shape, sharding, np.asarray(head).__getitem__)
        stacked = "{}" in tensor
        shape = leaf.shape[1:] if stacked else leaf.shape
        tensors = [tensor.format(i) for i in range(leaf.shape[0])] if stacked else [tensor]
        used.update(tensors)
        for name in tensors:
            if name not in files.shapes:
                raise InputError(f"{path}: the tensor {name!r} is missing; {_CHECK_CONFIG}")
            if files.shapes[name] != (expected := shape[::-1] if transposed else shape):
                found = files.shapes[name]
                raise InputError(f"{path}: the tensor {name!r} has shape {found}; expected {expected} by config.json")

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # only in the type stub
            layers, index = (tensors[index[0]], index[1:]) if stacked else (tensors, index)
            arrays = [files.read(name, index[::-1] if transposed else index).astype(leaf.dtype) for name in layers]
            arrays = [array.T if transposed else array for array in arrays]
            return np.stack(arrays) if stacked else arrays[0]

        return jax.make_array_from_callback(leaf.shape, sharding, shard)

    paths = pytree.map_with_path(lambda path, _: path, abstract)
    params = jax.tree.map(read, paths, abstract, state_shardings(mesh, abstract))
    if unknown := sorted(name for name in files.shapes.keys() - used if not re.fullmatch(family.unused_tensors, name)):
        fix = "" if head_tensors else suggest_name(files, model.decoder.hidden_size)
        raise InputError(
            f"{path}: the tensor {unknown[0]!r} {files.shapes[unknown[0]]} is not known for this configuration "
            f"({len(unknown)} unknown tensors); {fix or _CHECK_CONFIG}"
        )
    return params


def named_tensors(model: RewardModel, params: Params) -> Iterator[tuple[str, Callable[[], np.ndarray], int]]:
    """Yields (Hugging Face's name, function that returns the numpy array, size in bytes) for every tensor."""
    table = {row.path: row for row in FAMILIES[model.family].tensors}
    for parameter, leaf in pytree.flatten(params).items():
        _, name, transposed = table[parameter]
        if "{}" not in name:
            yield name, functools.partial(_to_numpy, leaf, transposed), leaf.nbytes
            continue
        for layer in range(len(leaf)):
            yield name.format(layer), functools.partial(_to_numpy, leaf, transposed, layer), leaf.nbytes // len(leaf)


def _to_numpy(array: jax.Array, transposed: bool, layer: int | None = None) -> np.ndarray:
    values = np.asarray(array if layer is None else array[layer])
    return values.T if transposed else values
