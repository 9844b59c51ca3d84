"""Reading and writing of parameters as Hugging Face tensors, by the tensor names of the model family."""

import functools
import re
from collections.abc import Callable, Iterator, Set
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rmjax.core import pytree, safetensors
from rmjax.core.errors import InputError
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families import FAMILIES, Family, TensorName
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
    table, parts = _tables(family, abstract)
    used, names = set(head_tensors), {re.sub(f"^{family.prefix}", "model.", name): name for name in files.shapes}

    def read(parameter: str, leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
        _, tensor, transposed = table[parameter]
        if parameter == _HEAD:
            return jax.make_array_from_callback(leaf.shape, sharding, np.asarray(head).__getitem__)
        stacked = "{}" in tensor
        shape = leaf.shape[1:] if stacked else leaf.shape
        outputs = [part.shape[-1] for part in parts[tensor].values()]
        start = sum(outputs[: list(parts[tensor]).index(parameter)])
        if len(outputs) > 1:
            shape = (*shape[:-1], sum(outputs))
        tensors = [tensor.format(i) for i in range(leaf.shape[0])] if stacked else [tensor]
        for i, name in enumerate(tensors):
            if name not in names:
                raise InputError(f"{path}: the tensor {name!r} is missing; {_CHECK_CONFIG}")
            tensors[i] = name = names[name]
            used.add(name)
            if files.shapes[name] != (expected := shape[::-1] if transposed else shape):
                found = files.shapes[name]
                raise InputError(f"{path}: the tensor {name!r} has shape {found}; expected {expected} by config.json")

        def shard(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # only in the type stub
            layers, index = (tensors[index[0]], index[1:]) if stacked else (tensors, index)
            if len(outputs) > 1:
                first, last, _ = index[-1].indices(leaf.shape[-1])
                index = (*index[:-1], slice(start + first, start + last))
            arrays = [files.read(name, index[::-1] if transposed else index).astype(leaf.dtype) for name in layers]
            arrays = [array.T if transposed else array for array in arrays]
            return np.stack(arrays) if stacked else arrays[0]

        return jax.make_array_from_callback(leaf.shape, sharding, shard)

    paths = pytree.map_with_path(lambda path, _: path, abstract)
    params = jax.tree.map(read, paths, abstract, state_shardings(mesh, abstract))
    unused = lambda name: re.fullmatch(family.unused_tensors, name) is not None
    if unknown := sorted(name for name in files.shapes.keys() - used if not unused(name)):
        fix = "" if head_tensors else suggest_name(files, model.decoder.hidden_size)
        raise InputError(
            f"{path}: the tensor {unknown[0]!r} {files.shapes[unknown[0]]} is not known for this configuration "
            f"({len(unknown)} unknown tensors); {fix or _CHECK_CONFIG}"
        )
    return params


def named_tensors(model: RewardModel, params: Params) -> Iterator[tuple[str, Callable[[], np.ndarray], int]]:
    """Yields (Hugging Face's name, function that returns the numpy array, size in bytes) for every tensor."""
    table, parts = _tables(FAMILIES[model.family], params)
    for name, leaves in parts.items():
        transposed, arrays = table[next(iter(leaves))].transposed, list(leaves.values())
        size = sum(leaf.nbytes for leaf in arrays)
        if "{}" not in name:
            yield name, functools.partial(_to_numpy, arrays, transposed), size
            continue
        for layer in range(len(arrays[0])):
            yield name.format(layer), functools.partial(_to_numpy, arrays, transposed, layer), size // len(arrays[0])


def _tables(family: Family, params: Params) -> tuple[dict[str, TensorName], dict[str, dict[str, Any]]]:
    """Returns {path: names} of all parameters of a family, and {tensor: {path: leaf}} of those in `params`."""
    flat, parts = pytree.flatten(params), dict[str, dict[str, Any]]()
    for row in family.tensors:
        if row.path in flat:
            parts.setdefault(row.name, {})[row.path] = flat[row.path]
    return {row.path: row for row in family.tensors}, parts


def _to_numpy(arrays: list[jax.Array], transposed: bool, layer: int | None = None) -> np.ndarray:
    """Returns the tensor whose rows are those of `arrays`, one after another."""
    parts = [np.asarray(array if layer is None else array[layer]) for array in arrays]
    parts = [part.T if transposed else part for part in parts]
    return np.concatenate(parts) if len(parts) > 1 else parts[0]
