"""The reward head in a Hugging Face directory: its tensors, whatever their names, and what config.json says of it.

Axis letters: D model, A attributes.
"""

import dataclasses
import json
import pathlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmjax.core import readouts
from rmjax.core.errors import InputError
from rmjax.core.files import read_json
from rmjax.core.safetensors import TensorDirectory
from rmjax.models import members
from rmjax.models.architecture import DecoderConfig, HeadConfig

# Names of a head in transformers (score), TRL (v_head.summary), OpenRLHF (score, value_head) and published models.
_MODULE = (
    r"(?:score|scores|scorer|classifier|classification_head|out_proj|lm_head|(?:regression|reward|value)_layer|"
    r"(?:v|value|reward|regression|ranking|rank|rm|prm|orm|critic|score|scalar|cls)_?(?:model_?)?head)"
    r"(?:\.summary)?"
)
_TENSOR = re.compile(rf"({_MODULE})\.(weight|bias)")
_LAYER_TENSOR = re.compile(rf"({_MODULE})\.([02]\.(?:weight|bias))")  # of torch.nn.Sequential(Linear, ReLU, Linear)
_DEEP_TENSOR = re.compile(rf"({_MODULE})\..+")
SEPARATE_FILES = "*head*.safetensors"  # with the head alone: LLaMA-Factory writes value_head.safetensors
# Parts of published heads that are not implemented: regex of their tensors, and what they are.
_OTHER_HEADS = {
    r"gating\..+|reward_transform_matrix": "a gating network over the rewards of several objectives (ArmoRM; with "
    "quantiles QRM, with means and spreads URM), which reads a second hidden state at the end of the prompt"
}
_TORCH_FILES = ("*head*.bin", "*head*.pt", "*head*.pth")
_STEP_TOKEN = "<extra_0>"  # Qwen2.5-Math-PRM's, after each step
_PLACEHOLDER = re.compile(r"LABEL_\d+")  # transformers' name of a label without one


@dataclasses.dataclass(frozen=True)
class Head:
    """A reward head that was read from files.

    Attributes:
      kernel: float32 [D, K·A], K members; [H, K·A] after a hidden layer.
      tensors: names of the tensors that it was read from.
      description: its tensors, and what is computed from their output.
      statistics: `reward_mean` and `reward_std` in config.json that are stored, not applied; may be empty.
      hidden: `kernel` float32 [D, H] and `bias` float32 [H] of a hidden layer with ReLU before the kernel; None: none.
      laplace: `factor` float32 [D, D] and `offset` float32 [D] of a Laplace approximation; None: none.
    """

    config: HeadConfig
    kernel: np.ndarray
    tensors: frozenset[str]
    description: str
    statistics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    hidden: Mapping[str, np.ndarray] | None = None
    laplace: Mapping[str, np.ndarray] | None = None

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the head, as those of `RewardModel.init_head`."""
        laplace = {} if self.laplace is None else {"laplace": dict(self.laplace)}
        return {"kernel": self.kernel} | ({"hidden": dict(self.hidden)} if self.hidden else {}) | laplace


def read(files: TensorDirectory, decoder: DecoderConfig, metadata: Mapping[str, Any]) -> Head | None:
    """Returns the head of a Hugging Face directory or artifact; None if there is none.

    Its bias becomes `shift`. OpenRLHF's `mean` and `std` of config.json are applied, (reward - mean) / std, unless
    `normalize_reward` is false. Two labels without names are the classes wrong and right in a token classifier (TRL's
    PRMTrainer) or if `problem_type` is "single_label_classification": the one reward is log P(right) / P(wrong), the
    difference of the logits. All other labels are attributes.

    Args:
      files: including `SEPARATE_FILES`.
      metadata: contents of rmjax.json; {} if there is none.

    Raises:
      InputError: the head is not linear or not finite, there are several, or config.json does not fit it.
    """
    where = files.directory
    if (module_tensors := _find(files, decoder)) is None:
        _refuse_torch_files(where)
        return None
    module, tensors = module_tensors
    names, hidden = frozenset(tensors.values()), None
    if any(name[0] in "02" for name in tensors):
        hidden, module, tensors = _read_hidden(files, module, tensors, decoder.hidden_size)
    size = hidden["bias"].size if hidden else decoder.hidden_size
    kernel, bias = _read_tensors(files, module, tensors, size)
    description = f"{module} {list(kernel.T.shape)}" + (" with bias" if "bias" in tensors else "")
    description += f" after a hidden layer of {size} with ReLU" if hidden else ""
    if metadata:
        config = HeadConfig.from_json(dict(metadata))
        _check_count(where / "rmjax.json", config.attributes, module, kernel)
        found = members.read(where, config, size) if config.uncertain else {}
        kernel = found.get("kernel", kernel)
        return Head(config, kernel, names, description, hidden=hidden, laplace=found.get("laplace"))
    values = read_json(files.config_file)
    attributes = _attributes(files.config_file, values, module, kernel)
    if name := _two_classes(values, attributes):
        kernel, bias, attributes = kernel[:, 1:] - kernel[:, :1], bias[1:] - bias[:1], (name,)
        description += ", two classes: the reward is the difference of their logits"
    normalization = _normalization(files.config_file, values, len(attributes))
    if normalization is None:
        return Head(
            _head_config(attributes, (), bias, size if hidden else 0), kernel, names, description, hidden=hidden
        )
    mean, std = normalization
    if values.get("normalize_reward") is False:
        statistics = {"reward_mean": float(mean[0]), "reward_std": float(std[0])} if len(attributes) == 1 else {}
        scale = ()
    else:
        description += f", normalized by config.json's mean {mean.tolist()} and std {std.tolist()}"
        statistics, scale, bias = {}, tuple((1 / std).tolist()), (bias - mean) / std
    config = _head_config(attributes, scale, bias, size if hidden else 0)
    return Head(config, kernel, names, description, statistics, hidden)


def data_options(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns the data options of a model by its config.json.

    TRL's token classifiers are read at the separators after the steps, and Qwen2.5-Math-PRM at a token of its own.
    """
    if any("ForProcessRewardModel" in str(name) for name in values.get("architectures") or ()):
        return {"step_readout": "separator", "step_separator": _STEP_TOKEN}
    return {"step_readout": "separator"} if _is_token_classifier(values) else {}


def readout(values: Mapping[str, Any]) -> str:
    """Returns where a model's rewards are read by its config.json, a value of `config.data.readout`.

    OpenAssistant's models have `pooling`, and InternLM2's add the token `reward_token_id` to the conversation.
    """
    if values.get("pooling") == "mean":
        return readouts.CONVERSATION_MEAN
    token = values.get("reward_token_id")
    return readouts.LAST_TOKEN if token is None else f"{readouts.TOKEN_ID}{token}"


def suggest_name(files: TensorDirectory, size: int) -> str:
    """Returns what to do about a tensor that has the shape of a head [A, `size`] and another name; or ""."""
    for name, shape in sorted(files.shapes.items()):
        if len(shape) == 2 and shape[0] < size == shape[1] and not name.startswith("model."):
            return f"if {name!r} {shape} is the reward head, rename it to 'score.weight' (its bias to 'score.bias')"
    return ""


def is_placeholder(attribute: str) -> bool:
    """Returns whether an attribute has the name that transformers gives a label without one."""
    return _PLACEHOLDER.fullmatch(attribute) is not None


def _find(files: TensorDirectory, decoder: DecoderConfig) -> tuple[str, dict[str, str]] | None:
    """Returns the module's name and its tensors {"weight": name, "bias": name} of the one head, if any.

    The tensors of a head of two layers are `0.weight`, `0.bias`, `2.weight` and `2.bias`.
    """
    modules: dict[str, dict[str, str]] = {}
    for name, shape in files.shapes.items():
        if kind := next((kind for pattern, kind in _OTHER_HEADS.items() if re.fullmatch(pattern, name)), ""):
            raise InputError(
                f"{files.directory}: the tensor {name!r} {shape} is of {kind}; such a head is not implemented: "
                "train a new one on the decoder alone (remove the head's tensors), or use a model with a linear head"
            )
        if match := _TENSOR.fullmatch(name):
            if match[1] != "lm_head" or shape[0] < decoder.hidden_size:  # not a row per token
                modules.setdefault(match[1], {})[match[2]] = name
        elif match := _LAYER_TENSOR.fullmatch(name):
            modules.setdefault(match[1], {})[match[2]] = name
        elif (match := _DEEP_TENSOR.fullmatch(name)) and match[1] != "lm_head":
            raise InputError(
                f"{files.directory}: the reward head {match[1]!r} is not one linear layer, or two with ReLU between "
                f"({match[1]}.0 and {match[1]}.2), which are implemented (tensor {name!r} {shape})"
            )
    if len(modules) > 1:
        names = ", ".join(sorted(name for tensors in modules.values() for name in tensors.values()))
        raise InputError(f"{files.directory}: there are several reward heads ({names}); remove all but one of them")
    return modules.popitem() if modules else None


def _refuse_torch_files(directory: pathlib.Path) -> None:
    if found := sorted(path.name for pattern in _TORCH_FILES for path in directory.glob(pattern)):
        path = directory / found[0]
        names = json.dumps(str(path)), json.dumps(str(path.with_suffix(".safetensors")))
        code = f"import torch, safetensors.torch as s; s.save_file(torch.load({names[0]}), {names[1]})"
        raise InputError(f"{path}: the reward head is in PyTorch's format; convert it: python -c {shlex.quote(code)}")


def _read_hidden(
    files: TensorDirectory, module: str, tensors: Mapping[str, str], size: int
) -> tuple[dict[str, np.ndarray], str, dict[str, str]]:
    """Returns the hidden layer of a head of two layers; and name and tensors of its last layer."""
    part = lambda layer: {name[2:]: tensor for name, tensor in tensors.items() if name.startswith(layer)}
    kernel, bias = _read_tensors(files, f"{module}.0", part("0."), size)
    return {"kernel": kernel, "bias": bias}, f"{module}.2", part("2.")


def _read_tensors(
    files: TensorDirectory, module: str, tensors: Mapping[str, str], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel float32 [D, A] and bias float32 [A], zeros if there is none."""
    where, name = files.directory, f"{module}.weight"
    if "weight" not in tensors:
        raise InputError(f"{where}: the tensor {name!r} is missing; the head's bias is there")
    shape = files.shapes[name]
    if len(shape) != 2 or shape[1] != size:
        fix = "transpose it" if len(shape) == 2 and shape[0] == size else "check that the head belongs to this model"
        raise InputError(
            f"{where}: the reward head {name!r} has shape {shape}; expected [rewards, {size}] by config.json's "
            f"hidden_size: {fix}"
        )
    bias = np.zeros(shape[0], np.float32)
    if "bias" in tensors:
        if files.shapes[tensors["bias"]] != shape[:1]:
            found = files.shapes[tensors["bias"]]
            raise InputError(f"{where}: the tensor {tensors['bias']!r} has shape {found}; expected {shape[:1]}")
        bias = _read_finite(files, tensors["bias"])
    return _read_finite(files, name).T, bias


def _read_finite(files: TensorDirectory, name: str) -> np.ndarray:
    """Returns a tensor as float32; raises InputError if it has NaN or infinity, as all rewards would."""
    values = files.read(name).astype(np.float32)
    if bad := int(np.count_nonzero(~np.isfinite(values))):
        raise InputError(
            f"{files.paths[name]}: the tensor {name!r} of the reward head has NaN or infinity in {bad} of "
            f"{values.size} values; expected finite numbers: take a checkpoint from before its "
            "training diverged, or copy it again"
        )
    return values


def _attributes(
    config_file: pathlib.Path, values: Mapping[str, Any], module: str, kernel: np.ndarray
) -> tuple[str, ...]:
    """Returns the names of the head's labels: of `id2label`, or placeholders; `reward` for one without a name."""
    count, labels = kernel.shape[1], values.get("id2label") or {}
    try:
        names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{config_file}: id2label is {labels!r}; expected an object {{index: name}}") from error
    if len(names) == count:
        return names
    if not all(map(is_placeholder, names)):
        _check_count(config_file, names, module, kernel)
    # transformers does not write the names of two labels, its default; authors' own heads do not follow it at all.
    return ("reward",) if count == 1 else tuple(f"LABEL_{i}" for i in range(count))


def _check_count(file: pathlib.Path, names: tuple[str, ...], module: str, kernel: np.ndarray) -> None:
    if len(names) != kernel.shape[1]:
        raise InputError(
            f"{file}: names {len(names)} rewards ({', '.join(names)}); the reward head {module!r} has "
            f"{kernel.shape[1]} rows: correct the names"
        )


def _two_classes(values: Mapping[str, Any], attributes: tuple[str, ...]) -> str:
    """Returns the name of the reward that two classes without names make; empty for other labels."""
    if len(attributes) != 2 or not all(map(is_placeholder, attributes)):
        return ""
    if _is_token_classifier(values) or "step_separator" in data_options(values):
        return "correct"  # as in process data
    return "reward" if values.get("problem_type") == "single_label_classification" else ""


def _is_token_classifier(values: Mapping[str, Any]) -> bool:
    return any("TokenClassification" in str(name) for name in values.get("architectures") or ())


def _normalization(
    config_file: pathlib.Path, values: Mapping[str, Any], count: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the mean and the standard deviation of the rewards in config.json, float64 [A] each; None without."""
    given = {name: values[name] for name in ("mean", "std") if values.get(name) is not None}
    if not given:
        return None
    try:
        mean, std = (np.broadcast_to(np.asarray(given[name], np.float64), count) for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{config_file}: the reward's normalization is {given}; expected `mean` and `std`, a number each or one "
            f"per reward ({count})"
        ) from error
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise InputError(
            f"{config_file}: the reward's normalization is {given}; expected finite numbers and std above 0"
        )
    return mean, std


def _head_config(attributes: tuple[str, ...], scale: tuple[float, ...], shift: np.ndarray, hidden: int) -> HeadConfig:
    return HeadConfig(attributes, hidden=hidden, scale=scale, shift=tuple(shift.tolist()) if shift.any() else ())
