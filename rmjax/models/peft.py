"""Adapters in directories of the PEFT library, read as the tensors of the model that they make.

Axis letters: I inputs, O outputs of a linear map, R rank.
"""

import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import xxhash

from rmjax.core.errors import InputError
from rmjax.core.files import read_json
from rmjax.core.safetensors import TensorDirectory
from rmjax.models import lora

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
BASE_SUM, OPTIONS = "base_sum", "adapter_config"  # keys of rmjax.json
_BASE_PATH = "base_model_name_or_path"
PREFIX = "base_model.model."  # of the names in `WEIGHTS_FILE`
_MAGNITUDE = ".lora_magnitude_vector"  # of DoRA, [O]
_MATRIX = re.compile(r"(.+)\.lora_([AB])\.weight")
# Options that change what an adapter computes; any value but these is refused.
_OFF: tuple[Any, ...] = (None, False, 0, "", [], {})
_UNSUPPORTED = (
    *("lora_bias", "layer_replication", "target_parameters", "trainable_token_indices", "use_qalora"),
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

    With DoRA, each row of the sum is divided by its norm and multiplied by the adapter's magnitude.

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
        self._adapter = TensorDirectory(directory, single=WEIGHTS_FILE)
        self._options = options(directory)
        self._whole: dict[str, str] = {}  # name in the base model: name in the adapter's file
        self._scales: dict[str, float] = {}  # name of a matrix in the base model: the scale of its adapter
        self.shapes = dict(base.shapes)
        for name in self._adapter.shapes:
            module = name.removeprefix(PREFIX)
            if match := _MATRIX.fullmatch(module):
                if match[2] == "A":
                    self._scales[match[1] + ".weight"] = self._check(match[1])
            elif module.endswith(_MAGNITUDE) and self._options.get("use_dora"):
                pass  # read with the matrices
            elif ".lora_" in module:
                raise InputError(f"{directory}: the tensor {name!r} is not implemented; merge the adapter with PEFT")
            else:
                self._whole[module.replace(".base_layer.", ".")] = name
        for name, stored in self._whole.items():
            shape = self._adapter.shapes[stored]
            if len(shape) == 2 and "embed" in name and shape[0] != self.shapes.get(name, shape)[0]:
                raise InputError(
                    f"{directory}: the adapter's {name!r} has {shape[0]} tokens, that of the base model "
                    f"{base.directory} {self.shapes[name][0]}: the vocabulary was changed in training; merge the "
                    "adapter with PEFT into the model that it was trained on"
                )
            self.shapes[name] = shape
        self._check_base()

    def _check_base(self) -> None:
        """Raises InputError if the base model or the options are not those that the adapter was trained with."""
        file = self.directory / "rmjax.json"  # written by rmjax alone
        metadata = read_json(file) if file.exists() else {}
        for key, expected in metadata.get(OPTIONS, {}).items():
            if key != _BASE_PATH and (found := self._options.get(key)) != expected:
                raise InputError(
                    f"{self.directory / CONFIG_FILE}: {key} is {found!r}; the adapter was trained with {expected!r} "
                    f"({file.name}): restore it"
                )
        if BASE_SUM in metadata and metadata[BASE_SUM] != base_sum(self._base, self._scales):
            raise InputError(
                f"{self.directory}: the adapter is of another base model: the matrices in {self._base.directory} have "
                f"the right shapes, and other values than those that it was trained on; correct "
                f"base_model_name_or_path in {CONFIG_FILE}"
            )

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
        magnitude = self._adapter.shapes.get(PREFIX + module + _MAGNITUDE)
        if self._options.get("use_dora") and magnitude != (outputs,):
            raise InputError(
                f"{self.directory}: use_dora is True, and the magnitude of {module!r} has the shape {magnitude}; "
                f"expected {(outputs,)}"
            )
        return scale(self._options, module, a[0])

    def _names(self, module: str) -> tuple[str, ...]:
        return tuple(PREFIX + name for name, _ in tensor_names(module)[:2])

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Returns tensor `name`, or its slice at `index`: float32 if an adapter is added, else in the file's dtype."""
        if name in self._whole:
            return self._adapter.read(self._whole[name], index)
        if name not in self._scales:
            return self._base.read(name, index)
        rows, columns = (*index, slice(None), slice(None))[:2]
        transposed, dora = (bool(self._options.get(key)) for key in ("fan_in_fan_out", "use_dora"))
        if transposed:
            rows, columns = columns, rows
        total = self._sum(name, rows, slice(None) if dora else columns, transposed)
        if dora:
            magnitude = self._adapter.read(PREFIX + name.removesuffix(".weight") + _MAGNITUDE, (rows,))
            total = total * (magnitude.astype(np.float32) / np.linalg.norm(total, axis=1))[:, None]
            total = total[:, columns]
        return total.T if transposed else total

    def _sum(self, name: str, rows: slice, columns: slice, transposed: bool) -> np.ndarray:
        """Returns a part of W + scale · B · A, float32 [O, I]."""
        a, b = self._names(name.removesuffix(".weight"))
        read_float32 = lambda name, *index: self._adapter.read(name, index).astype(np.float32)
        values = self._base.read(name, (columns, rows) if transposed else (rows, columns)).astype(np.float32)
        product = read_float32(b, rows) @ read_float32(a, slice(None), columns)
        return (values.T if transposed else values) + np.float32(self._scales[name]) * product


def _select(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Returns the value of the first pattern, a regex of the end of a module's name, that matches; as PEFT does."""
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), default)


def base_sum(files: TensorDirectory, names: Iterable[str]) -> str:
    """Returns a checksum of the first row of each of some matrices, which tells base models apart.

    The values are rounded to bfloat16, so that it is the same for a copy of the model in another dtype.
    """
    digest = xxhash.xxh3_128()
    for name in sorted(names):
        row = files.read(name, (slice(0, 1),)).astype(ml_dtypes.bfloat16)
        digest.update(f"{files.shapes[name]}".encode() + row.tobytes())
    return digest.hexdigest()


def tensor_names(module: str) -> tuple[tuple[str, str], ...]:
    """Returns the names of an adapter's tensors, without `PREFIX`, and their names in the parameter tree."""
    return (f"{module}.lora_A.weight", lora.A), (f"{module}.lora_B.weight", lora.B), (module + _MAGNITUDE, lora.M)


def options(directory: pathlib.Path) -> dict[str, Any]:
    """Returns the contents of adapter_config.json."""
    return read_json(directory / CONFIG_FILE)


def scale(options: Mapping[str, Any], module: str, rank: int) -> float:
    """Returns the factor of B · A of a module whose adapter has the rank `rank`, by PEFT's rules."""
    alpha = _select(options.get("alpha_pattern") or {}, module, options.get("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if options.get("use_rslora") else rank)
