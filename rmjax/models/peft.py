"""Adapters in directories of the PEFT library: read as the tensors of the model that they make, and written.

Axis letters: I inputs, O outputs of a linear map, R rank.
"""

import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from rmjax.core import pytree, safetensors
from rmjax.core.errors import InputError
from rmjax.core.files import read_json
from rmjax.core.safetensors import TensorDirectory
from rmjax.models import lora, weights
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.families import FAMILIES

CONFIG_FILE = "adapter_config.json"
_WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MATRIX = re.compile(r"(.+)\.lora_([AB])\.weight")
# Options that change what an adapter computes; any value but these is refused.
_OFF: tuple[Any, ...] = (None, False, 0, "", [], {})
_UNSUPPORTED = (
    *("use_dora", "lora_bias", "layer_replication", "target_parameters", "trainable_token_indices", "use_qalora"),
    *("alora_invocation_tokens", "megatron_config", "use_bdlora", "arrow_config", "kasa_config", "velora_config"),
    "monteclora_config",
)


def is_adapter(directory: pathlib.Path) -> bool:
    """Returns whether a directory holds an adapter rather than a whole model."""
    return (directory / CONFIG_FILE).exists() and not (directory / "config.json").exists()


def base_model(directory: pathlib.Path) -> str:
    """Returns the path or hub name of the model that the adapter in `directory` was trained on.

    Raises:
      InputError: the adapter's configuration has none, or has options that are not implemented.
    """
    file = directory / CONFIG_FILE
    values = read_json(file)
    if values.get("peft_type") != "LORA":
        raise InputError(f"{file}: peft_type is {values.get('peft_type')!r}; only 'LORA' is implemented")
    for key in _UNSUPPORTED:
        if values.get(key) not in _OFF:
            raise InputError(
                f"{file}: {key} is {values[key]!r}, which is not implemented; merge the adapter into its base model "
                "with PEFT (merge_and_unload), and give the result"
            )
    if not (path := values.get("base_model_name_or_path")):
        raise InputError(f"{file}: base_model_name_or_path is missing; set it to the directory of the base model")
    return str(path)


class MergedTensors(TensorDirectory):
    """The tensors of a base model with an adapter: W + scale · B · A in float32 in place of each W [O, I] with A and B.

    Tensors that the adapter holds whole, such as the head, precede those of the base model.

    Args:
      directory: of the adapter.
      base: the tensors of its base model.

    Raises:
      InputError: a file is missing or damaged, or the adapter does not fit the base model.
    """

    def __init__(self, directory: pathlib.Path, base: TensorDirectory):
        self.directory, self.config_file = directory, base.config_file
        self._base, self._files = base, {}
        self._adapter = TensorDirectory(directory, single=_WEIGHTS_FILE)
        self._options = read_json(directory / CONFIG_FILE)
        self._whole: dict[str, str] = {}  # name in the base model: name in the adapter's file
        self._scales: dict[str, float] = {}  # name of a matrix in the base model: the scale of its adapter
        self.shapes = dict(base.shapes)
        for name in self._adapter.shapes:
            module = name.removeprefix(_PREFIX)
            if match := _MATRIX.fullmatch(module):
                if match[2] == "A":
                    self._scales[match[1] + ".weight"] = self._check(match[1])
            elif ".lora_" in module:
                raise InputError(f"{directory}: the tensor {name!r} is not implemented; merge the adapter with PEFT")
            else:
                self._whole[module.replace(".base_layer.", ".")] = name
        self.shapes |= {name: self._adapter.shapes[stored] for name, stored in self._whole.items()}

    def _check(self, module: str) -> float:
        """Returns the scale of the adapter of a module; raises InputError unless it fits the base model's matrix."""
        shapes = [self._adapter.shapes.get(name) for name in self._names(module)]
        a, b, found = *shapes, self._base.shapes.get(f"{module}.weight")
        if b is None or a is None or len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise InputError(f"{self.directory}: the adapter of {module!r} has the matrices A {a} and B {b}")
        outputs, inputs = b[0], a[1]
        if found != ((inputs, outputs) if self._options.get("fan_in_fan_out") else (outputs, inputs)):
            has = f"has the shape {found}" if found else "is missing"
            raise InputError(
                f"{self.directory}: the adapter is of another base model: its matrices A {a} and B {b} are for "
                f"a matrix {(outputs, inputs)}, and {module}.weight {has} in {self._base.directory}; correct "
                f"base_model_name_or_path in {CONFIG_FILE}"
            )
        alpha = _select(self._options.get("alpha_pattern") or {}, module, self._options.get("lora_alpha", 8))
        return alpha / (math.sqrt(a[0]) if self._options.get("use_rslora") else a[0])

    def _names(self, module: str) -> tuple[str, ...]:
        return tuple(_PREFIX + name for name, _ in _matrices(module))

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns tensor `name`, or its slice at `index`: float32 if an adapter is added, else in the file's dtype."""
        if name in self._whole:
            return self._adapter.read(self._whole[name], index)
        values = self._base.read(name, index)
        if name not in self._scales:
            return values
        rows, columns = (*index, slice(None), slice(None))[:2]
        if transposed := self._options.get("fan_in_fan_out"):
            rows, columns = columns, rows
        a, b = self._names(name.removesuffix(".weight"))
        product = self._adapter.read(b, (rows,)).astype(np.float32) @ self._adapter.read(
            a, (slice(None), columns)
        ).astype(np.float32)
        return values.astype(np.float32) + np.float32(self._scales[name]) * (product.T if transposed else product)


def _select(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Returns the value of the first pattern, a regex of the end of a module's name, that matches; as PEFT does."""
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), default)


def write(directory: pathlib.Path, model: RewardModel, params: Params, base: str) -> None:
    """Writes the adapters and the head, as PEFT does for a sequence classifier.

    Args:
      model: with adapters, and a head without scale.
      params: at least the adapters and the head.
      base: path or hub name of the base model.
    """
    assert model.lora is not None
    leaves = pytree.flatten(params)
    rows = (row for row in FAMILIES[model.family].tensors if row.path.endswith("/kernel"))
    modules = {row.path.removesuffix("kernel"): row.name.removesuffix(".weight") for row in rows}
    modules = {path: module for path, module in modules.items() if path + lora.A in leaves}
    names = list(modules.values())
    if fused := {name.rpartition(".")[2] for name in names if names.count(name) > 1}:
        raise InputError(
            f"the family {model.family} stores several matrices in one tensor ({', '.join(sorted(fused))}), and their "
            "adapters here are apart, which PEFT cannot represent; export the merged model, without --peft"
        )
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base,
        "r": model.lora.rank,
        "lora_alpha": model.lora.alpha,
        "use_rslora": model.lora.rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted({re.sub(r"^.*\{\}\.", "", module) for module in modules.values()}),
        "modules_to_save": ["classifier", "score"],
        "inference_mode": True,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    tensors = [*_named_adapters(modules, leaves), *weights.named_tensors(model, {"head": params["head"]})]
    safetensors.write(directory, [(_PREFIX + name, make, size) for name, make, size in tensors], single=_WEIGHTS_FILE)


def _named_adapters(
    modules: Mapping[str, str], leaves: Mapping[str, jax.Array]
) -> Iterator[tuple[str, Callable[[], np.ndarray], int]]:
    """Yields what `weights.named_tensors` yields, for adapters; `modules`: {path of parameters: name of the module}."""
    for path, module in modules.items():
        for name, part in _matrices(module):
            leaf = leaves[path + part]
            for layer in range(len(leaf)):
                yield name.format(layer), functools.partial(_transpose, leaf, layer), leaf.nbytes // len(leaf)


def _matrices(module: str) -> tuple[tuple[str, str], ...]:
    return (f"{module}.lora_A.weight", lora.A), (f"{module}.lora_B.weight", lora.B)


def _transpose(leaf: jax.Array, layer: int) -> np.ndarray:
    return np.asarray(leaf[layer]).T
