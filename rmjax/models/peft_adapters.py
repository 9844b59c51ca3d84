"""The adapters of a model as the tensors of a PEFT directory: written, and read to continue their training.

Matrices that a family stores as the outputs of one tensor W [O, I] have one adapter in PEFT. It is made of those of the
k parts: A is their A, one below another, and B has their B as blocks, with zeros elsewhere. So it has rank k · R, and
its alpha is adjusted such that the scale stays the same. Axis letters: I inputs, O outputs of a linear map, R rank, L
layers.
"""

import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, NamedTuple

import jax
import numpy as np

from rmjax.core import pytree, safetensors
from rmjax.core.errors import InputError
from rmjax.core.safetensors import TensorDirectory
from rmjax.models import lora, peft, weights
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families import FAMILIES

_Tensor = tuple[str, Callable[[], np.ndarray], int]  # name, function that returns the array, size in bytes


class OtherAdapters(Exception):
    """The adapters of a directory are not those of a model."""


class _Part(NamedTuple):
    """A matrix of the parameter tree as outputs of a tensor in files."""

    path: str  # of the linear map, with a slash at its end
    rows: np.ndarray  # int [its O], the indices of its outputs among those of the tensor
    ranks: slice  # of the tensor's adapter; empty if the matrix has none

    @property
    def adapted(self) -> bool:
        return self.ranks.stop > self.ranks.start


class _Module(NamedTuple):
    """A linear map of the files."""

    name: str  # with `{}` for the layer's index
    parts: tuple[_Part, ...]
    transposed: bool  # stored as [I, O], as GPT-2's are

    @property
    def adapted(self) -> tuple[_Part, ...]:
        return tuple(part for part in self.parts if part.adapted)


def _modules(model: RewardModel) -> list[_Module]:
    """Returns the linear maps that have adapters."""
    shapes, named = pytree.flatten(model.shapes()), dict[str, list[Any]]()
    for row in FAMILIES[model.family].tensors:
        if row.path.endswith("/kernel") and row.path in shapes:
            named.setdefault(row.name, []).append(row)
    modules = []
    for name, rows in named.items():
        heads = model.decoder.num_kv_heads if rows[0].by_head else 1
        outputs = [shapes[row.path].shape[-1] // heads for row in rows]  # of each head
        indices = np.arange(heads * sum(outputs)).reshape(heads, -1)
        parts, rank = [], 0
        for row, columns in zip(rows, np.split(indices, np.cumsum(outputs)[:-1], axis=1), strict=True):
            path = row.path.removesuffix("kernel")
            a = shapes.get(path + lora.A)
            parts.append(_Part(path, columns.ravel(), slice(rank, rank := rank + (a.shape[-1] if a else 0))))
        if rank:
            modules.append(_Module(name.removesuffix(".weight"), tuple(parts), not rows[0].transposed))
    return modules


def write(directory: pathlib.Path, model: RewardModel, params: Params, base: str) -> None:
    """Writes the adapters and the head, as PEFT does for a sequence classifier.

    Args:
      model: with adapters, and a head without scale.
      params: at least the adapters and the head.
      base: path or hub name of the base model.

    Raises:
      InputError: the head has a hidden layer; or DoRA on some of the parts of a tensor, whose other magnitudes are
        not in `params`.
    """
    assert model.lora is not None
    if model.head.hidden:
        raise InputError(
            "--peft: the reward head has a hidden layer, which transformers' classifiers do not have; export the "
            "merged model, without --peft"
        )
    modules, leaves = _modules(model), pytree.flatten(params)
    suffix = lambda module: re.sub(r"^.*\{\}\.", "", module.name)
    counts = {suffix(module): count for module in modules if (count := len(module.adapted)) > 1}
    rank, alpha = model.lora.rank, model.lora.alpha
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: count * rank for name, count in counts.items()},
        "alpha_pattern": {
            name: alpha * (math.sqrt(count) if model.lora.rslora else count) for name, count in counts.items()
        },
        "use_rslora": model.lora.rslora,
        "use_dora": model.lora.dora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(module.transposed for module in modules),
        "target_modules": sorted(map(suffix, modules)),
        "modules_to_save": ["classifier", "score"],
        "inference_mode": True,
    }
    for module in modules if model.lora.dora else ():
        if others := [part.path.split("/")[-2] for part in module.parts if not part.adapted]:
            raise InputError(
                f"the family {model.family} stores {', '.join(others)} in one tensor with matrices that have adapters "
                f"({suffix(module)}), which PEFT cannot represent with DoRA; export the merged model, without --peft"
            )
    (directory / peft.CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    head = weights.named_tensors(model, {"head": params["head"]})
    tensors = [(peft.PREFIX + name, make, size) for name, make, size in (*_tensors(modules, leaves), *head)]
    safetensors.write(directory, tensors, single=peft.WEIGHTS_FILE)


def matrices(model: RewardModel) -> list[str]:
    """Returns the names of the tensors that have adapters."""
    layers = range(model.decoder.num_layers)
    return [f"{module.name.format(layer)}.weight" for module in _modules(model) for layer in layers]


def _tensors(modules: list[_Module], leaves: Mapping[str, jax.Array]) -> Iterator[_Tensor]:
    """Yields what `weights.named_tensors` yields, for adapters."""
    for module in modules:
        layers = len(leaves[module.adapted[0].path + lora.A])
        make = {lora.A: _join_a, lora.B: _join_b, lora.M: _join_magnitudes}
        for name, kind in peft.tensor_names(module.name):
            if module.adapted[0].path + kind in leaves:  # the magnitude only with DoRA
                size = sum(leaves[part.path + kind].nbytes for part in module.adapted) // layers
                for layer in range(layers):
                    yield name.format(layer), functools.partial(make[kind], module, leaves, layer), size


def _join_a(module: _Module, leaves: Mapping[str, jax.Array], layer: int) -> np.ndarray:
    return np.concatenate([np.asarray(leaves[part.path + lora.A][layer]).T for part in module.adapted])


def _join_b(module: _Module, leaves: Mapping[str, jax.Array], layer: int) -> np.ndarray:
    joined = np.zeros((sum(len(part.rows) for part in module.parts), module.parts[-1].ranks.stop), np.float32)
    for part in module.adapted:
        joined[part.rows, part.ranks] = np.asarray(leaves[part.path + lora.B][layer]).T
    return joined


def _join_magnitudes(module: _Module, leaves: Mapping[str, jax.Array], layer: int) -> np.ndarray:
    joined = np.zeros(sum(len(part.rows) for part in module.parts), np.float32)
    for part in module.adapted:
        joined[part.rows] = np.asarray(leaves[part.path + lora.M][layer])
    return joined


def read(directory: pathlib.Path, model: RewardModel, head: Set[str]) -> dict[str, np.ndarray]:
    """Returns the adapters {path: float32 [L, ...]} of a PEFT directory.

    Args:
      model: with adapters.
      head: names of the head's tensors.

    Raises:
      OtherAdapters: they are not those of `model`; the message says why.
    """
    assert model.lora is not None
    files, options = TensorDirectory(directory, single=peft.WEIGHTS_FILE), peft.options(directory)
    family = FAMILIES[model.family]
    names = {re.sub(f"^{family.prefix}", family.base, name.removeprefix(peft.PREFIX)): name for name in files.shapes}
    if bool(options.get("use_dora")) != model.lora.dora:
        raise OtherAdapters(f"their use_dora is {not model.lora.dora}, config.lora.dora is {model.lora.dora}")
    leaves, used = dict[str, np.ndarray](), set(head)
    for module in _modules(model):
        layers = []
        for layer in range(model.decoder.num_layers):
            stored = {kind: name.format(layer) for name, kind in peft.tensor_names(module.name)}
            used |= set(stored.values())
            tensors = {kind: names[name] for kind, name in stored.items() if name in names}
            _check_module(files, tensors, options, module, module.name.format(layer), model.lora)
            layers.append(_split(module, {kind: files.read(tensor) for kind, tensor in tensors.items()}))
        leaves |= {path: np.stack([split[path] for split in layers]) for path in layers[0]}
    if others := sorted(names.keys() - used):
        raise OtherAdapters(f"they have the tensor {others[0]!r}, which is none of the adapters of config.lora")
    return leaves


def _check_module(
    files: TensorDirectory,
    tensors: Mapping[str, str],
    options: Mapping[str, Any],
    module: _Module,
    name: str,
    config: lora.LoraConfig,
) -> None:
    """Raises OtherAdapters unless `tensors`, {kind: name in `files`}, have the rank and the scale of the adapters."""
    if lora.A not in tensors or lora.B not in tensors:
        raise OtherAdapters(f"they have none for {name!r}, and config.lora.targets is {config.targets!r}")
    rank = module.parts[-1].ranks.stop
    if (found := files.shapes[tensors[lora.A]][0]) != rank:
        parts = f" ({len(module.adapted)} matrices of rank {config.rank})" if len(module.adapted) > 1 else ""
        raise OtherAdapters(f"their rank is {found} in {name!r}, that of config.lora {rank}{parts}")
    if not math.isclose(scale := peft.scale(options, name, rank), config.scale, rel_tol=1e-9):
        own = f"that of config.lora (alpha, rank and rslora) {config.scale:g}"
        raise OtherAdapters(f"their scale is {scale:g} in {name!r}, {own}")


def _split(module: _Module, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the adapters {path: float32 array} of the parts of a linear map."""
    tensors = {kind: tensor.astype(np.float32) for kind, tensor in tensors.items()}
    a, b = tensors[lora.A], tensors[lora.B]
    leaves, rest = dict[str, np.ndarray](), b.copy()
    for part in module.adapted:
        leaves[part.path + lora.A], leaves[part.path + lora.B] = a[part.ranks].T, b[part.rows, part.ranks].T
        rest[part.rows, part.ranks] = 0
        if lora.M in tensors:
            leaves[part.path + lora.M] = tensors[lora.M][part.rows]
    if rest.any():
        raise OtherAdapters(f"the matrices of {module.name!r} share one adapter, and here each has its own")
    return leaves
