"""Reading and writing of parameters as Hugging Face tensors, by the tensor names of the model family."""

import functools
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rmjax.core import pytree, safetensors
from rmjax.core.errors import InputError
from rmjax.core.progress import progress_bar
from rmjax.models import int8
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families import FAMILIES, Family, TensorName
from rmjax.models.heads import suggest_name
from rmjax.models.placement import Index, Numbers, from_columns, from_tensors, num_reads
from rmjax.models.sharding import state_shardings

# Names of the tensors of a head with a hidden layer.
_TWO_LAYERS = (
    TensorName("head/hidden/kernel", "score.0.weight", True),
    TensorName("head/hidden/bias", "score.0.bias", False),
    TensorName("head/kernel", "score.2.weight", True),
)
_CHECK_CONFIG = "check that config.json belongs to these weights"


def load(
    files: safetensors.TensorDirectory,
    model: RewardModel,
    mesh: Mesh,
    head: Mapping[str, Any],
    head_tensors: Set[str] = frozenset(),
    progress: bool = False,
    quantized: bool = False,
) -> Params:
    """Returns the parameters of `model` from a Hugging Face directory; each device reads only its shards.

    Args:
      files: of a causal LM, or of a model with a reward head.
      head: float32, the head's parameters (`RewardModel.init_head`).
      head_tensors: names of the tensors that they were read from.
      progress: show a progress bar.
      quantized: store the layers' matrices as int8, each while it is read; see `int8`.

    Raises:
      InputError: a tensor is missing, unknown or has another shape; names the tensor.
    """
    path, family = files.directory, FAMILIES[model.family]
    abstract = model.shapes()
    used, names = set(head_tensors), {re.sub(f"^{family.prefix}", family.base, name): name for name in files.shapes}
    table, parts = _tables(_choose_names(family, names), abstract)

    head_leaves = pytree.flatten({"head": dict(head)})

    def read(parameter: str, leaf: jax.ShapeDtypeStruct) -> dict[str, jax.Array]:
        if (given := head_leaves.get(parameter)) is not None:
            values = np.asarray(given)
            return {parameter: jax.make_array_from_callback(leaf.shape, placed[parameter], values.__getitem__)}
        _, tensor, transposed, by_head = table[parameter]
        stacked = tensor.count("{}")  # the number of leading axes that the names of tensors stand for
        outputs = [part.shape[-1] for part in parts[tensor].values()]
        which = list(parts[tensor]).index(parameter)
        shape = (*leaf.shape[stacked:-1], sum(outputs))
        tensors = np.empty(leaf.shape[:stacked], object)
        for at in np.ndindex(tensors.shape):
            if (name := tensor.format(*at)) not in names:
                raise InputError(f"{path}: the tensor {name!r} is missing; {_CHECK_CONFIG}")
            tensors[at] = name = names[name]
            used.add(name)
            if files.shapes[name] != (expected := _swapped(shape) if transposed else shape):
                found = files.shapes[name]
                raise InputError(f"{path}: the tensor {name!r} has shape {found}; expected {expected} by config.json")

        def read_one(name: str, index: tuple[slice, ...]) -> np.ndarray:
            rest, columns = index[:-1], slice(*index[-1].indices(leaf.shape[-1]))
            if by_head:
                wanted = slice(None)
            else:
                wanted = slice(*(sum(outputs[:which]) + end for end in (columns.start, columns.stop)))
            array = files.read(name, _swapped((*rest, wanted)) if transposed else (*rest, wanted))
            bar.update(1)
            array = np.swapaxes(array, -1, -2) if transposed else array
            return _take_part(array, outputs, which, model.decoder.num_kv_heads)[..., columns] if by_head else array

        read_at: Callable[[Numbers, Index], np.ndarray] = lambda at, index: read_one(tensors[at], index)
        if parameter not in made:
            pair = int8.parts_of(parameter)
            leaves, where = [made[part] for part in pair], [placed[part] for part in pair]
            arrays = from_columns(leaves, where, stacked, read_at, int8.quantize_matrix)
            return dict(zip(pair, arrays, strict=True))
        return {parameter: from_tensors(leaf, placed[parameter], stacked, read_at)}

    shapes = pytree.flatten(abstract)
    stored = model.shapes(quantized)
    made, placed = pytree.flatten(stored), pytree.flatten(state_shardings(mesh, stored))
    count = 0
    for name, leaf in shapes.items():
        if name not in head_leaves:
            part = name if name in made else int8.parts_of(name)[0]
            count += num_reads(leaf, placed[part], table[name].name.count("{}"), part != name)
    found: dict[str, jax.Array] = {}
    with progress_bar(count, f"loading {path}", "tensor", disable=not progress) as bar:
        for name, leaf in shapes.items():
            found |= read(name, leaf)
    unused = lambda name: re.fullmatch(family.unused_tensors, name) is not None
    if unknown := sorted(name for name in files.shapes.keys() - used if not unused(name)):
        fix = "" if head_tensors else suggest_name(files, model.decoder.hidden_size)
        raise InputError(
            f"{path}: the tensor {unknown[0]!r} {files.shapes[unknown[0]]} is not known for this configuration "
            f"({len(unknown)} unknown tensors); {fix or _CHECK_CONFIG}"
        )
    return pytree.unflatten(found)


def named_tensors(model: RewardModel, params: Params) -> Iterator[tuple[str, Callable[[], np.ndarray], int]]:
    """Yields (Hugging Face's name, function that returns the numpy array, size in bytes) for every tensor."""
    rows: Iterable[TensorName] = FAMILIES[model.family].tensors
    if model.head.hidden:
        rows = [*(row for row in rows if not row.path.startswith("head/")), *_TWO_LAYERS]
    table, parts = _tables(rows, params)
    for name, leaves in parts.items():
        row, arrays = table[next(iter(leaves))], list(leaves.values())
        stack = arrays[0].shape[: name.count("{}")]
        size = sum(leaf.nbytes for leaf in arrays) // math.prod(stack)
        heads = model.decoder.num_kv_heads if row.by_head else 1
        for at in np.ndindex(stack):
            yield name.format(*at), functools.partial(_to_numpy, arrays, row.transposed, at, heads), size


def _choose_names(family: Family, names: Collection[str]) -> list[TensorName]:
    """Returns the table of a family, with its other names of parameters where files have these `names`."""
    others = {row.path: row for row in family.other_tensors if row.name.format(0, 0) in names}
    return [others.get(row.path, row) for row in family.tensors]


def _tables(rows: Iterable[TensorName], params: Params) -> tuple[dict[str, TensorName], dict[str, dict[str, Any]]]:
    """Returns {path: names} of all parameters of a table, and {tensor: {path: leaf}} of those in `params`."""
    table, flat, parts = {row.path: row for row in rows}, pytree.flatten(params), dict[str, dict[str, Any]]()
    for path, row in table.items():
        if path in flat:
            parts.setdefault(row.name, {})[path] = flat[path]
    return table, parts


def _to_numpy(arrays: list[jax.Array], transposed: bool, at: tuple[int, ...], heads: int) -> np.ndarray:
    """Returns the tensor whose outputs are those of `arrays`: all of the first, of the second, …, for each head."""
    parts = [np.asarray(array[at] if at else array) for array in arrays]
    whole = parts[0]
    if len(parts) > 1:
        split = [part.reshape(*part.shape[:-1], heads, -1) for part in parts]
        whole = np.concatenate(split, axis=-1).reshape(*whole.shape[:-1], -1)
    return np.swapaxes(whole, -1, -2) if transposed else whole


def _take_part(array: np.ndarray, outputs: list[int], which: int, heads: int) -> np.ndarray:
    """Returns the outputs of one array of the tensor that `_to_numpy` makes of several."""
    start, size = sum(outputs[:which]) // heads, outputs[which] // heads
    split = array.reshape(*array.shape[:-1], heads, -1)
    return split[..., start : start + size].reshape(*array.shape[:-1], -1)


def _swapped(axes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns what belongs to each axis of the transposed matrices."""
    return (*axes[:-2], axes[-1], axes[-2])
