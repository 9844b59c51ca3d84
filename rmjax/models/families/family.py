"""Model families of Hugging Face's transformers as data: keys of config.json and names of tensors."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

from rmjax.core.errors import InputError
from rmjax.models.architecture import DecoderConfig, RopeScaling
from rmjax.models.families.keys import check_unknown

_ROPE_KEYS = {"rope_parameters", "rope_scaling"}


class TensorName(NamedTuple):
    """The names of one parameter."""

    path: str  # in the parameter tree, whose layers are stacked
    name: str  # in Hugging Face's files; `{}` stands for the layer's index
    transposed: bool  # Hugging Face stores a linear map as [outputs, inputs], rmjax as [inputs, outputs]


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family."""

    model_type: str  # its name in config.json
    classifier: str  # class name of its sequence classifier, for an artifact's config.json
    keys: dict[str, str]  # {key of config.json: field of DecoderConfig}
    defaults: dict[str, Any]  # {key: value} of keys that may be missing
    constants: dict[str, Any]  # {key: value} of keys of which only one value is implemented
    ignored_keys: frozenset[str]  # besides those of every family (`rmjax.models.families.keys`)
    tensors: tuple[TensorName, ...]  # one for each parameter
    unused_tensors: str  # regex of the names of tensors that a reward model does not use

    def read_config(self, values: dict[str, Any], path: pathlib.Path) -> DecoderConfig:
        """Returns the hyperparameters in the values of the config.json at `path`.

        Raises:
          InputError: a missing or unknown key, or a value that the decoder does not implement.
        """
        found = {key: value for key, value in values.items() if value is not None}
        # As in transformers 5: rope_scaling, if set, replaces rope_parameters, whose theta precedes the one beside it.
        rope, heads = found.get("rope_scaling") or found.get("rope_parameters") or {}, found.get("num_attention_heads")
        head_dim = heads and found.get("hidden_size", 0) // heads
        derived = {"num_key_value_heads": heads, "head_dim": head_dim}
        found = self.defaults | derived | found
        found |= {"rope_theta": rope.get("rope_theta") or found["rope_theta"]}
        constants = self.constants | {"rope_interleaved": False}  # only the half-split layout
        for key, supported in constants.items():
            if (value := found.get(key, supported)) != supported:
                raise InputError(f"{path}: {key} is {value!r}; only {supported!r} is implemented")
        if missing := [key for key in self.keys if found.get(key) is None]:
            raise InputError(f"{path}: the key {missing[0]!r} is missing")
        check_unknown(values, {*self.keys, *constants} | _ROPE_KEYS | self.ignored_keys, path, self.model_type)
        floats = {field.name for field in dataclasses.fields(DecoderConfig) if field.type is float}
        convert = lambda field, value: float(value) if field in floats else value
        fields: dict[str, Any] = {field: convert(field, found[key]) for key, field in self.keys.items()}
        return DecoderConfig(**fields, rope_scaling=_rope_scaling(rope, fields["max_positions"], path))

    def write_config(self, config: DecoderConfig) -> dict[str, Any]:
        """Returns the values of a config.json that `read_config` reads back to an equal config."""
        scaling = {"rope_type": "default"}
        if config.rope_scaling is not None:
            scaling = {"rope_type": "llama3", **dataclasses.asdict(config.rope_scaling)}
        fields = {key: getattr(config, field) for key, field in self.keys.items()}
        rope = {"rope_theta": config.rope_theta, **scaling}
        return {"model_type": self.model_type, **fields, **self.constants, "rope_parameters": rope}


def _rope_scaling(values: dict[str, Any], max_positions: int, path: pathlib.Path) -> RopeScaling | None:
    rope_type = values.get("rope_type", values.get("type", "default"))
    if rope_type == "default":
        return None
    if rope_type != "llama3":
        raise InputError(f"{path}: rope_type is {rope_type!r}; 'default' and 'llama3' are implemented")
    values = {"original_max_position_embeddings": max_positions} | values
    try:
        return RopeScaling(**{field.name: values[field.name] for field in dataclasses.fields(RopeScaling)})
    except KeyError as error:
        raise InputError(f"{path}: rope scaling 'llama3': the key {error} is missing") from error
