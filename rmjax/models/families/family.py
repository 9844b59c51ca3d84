"""Model families of Hugging Face's transformers as data: keys of config.json and names of tensors."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rmjax.core.errors import InputError
from rmjax.models.architecture import ACTIVATIONS, DecoderConfig, LayerKind
from rmjax.models.families import rope as ropes
from rmjax.models.families.keys import check_unknown

# Names of activations in transformers that compute the same.
_SAME_ACTIVATION = {"swish": "silu"} | dict.fromkeys(("gelu_new", "gelu_fast"), "gelu_pytorch_tanh")


class TensorName(NamedTuple):
    """The names of one parameter. Parameters of the same tensor are its outputs, in the order of the table."""

    path: str  # in the parameter tree, whose layers are stacked
    name: str  # in Hugging Face's files; `{}` stands for the layer's index, a second one for the expert's
    transposed: bool  # Hugging Face stores a linear map as [outputs, inputs], rmjax as [inputs, outputs]
    by_head: bool = False  # of a tensor of several: it has each key/value head's part of all of them, head after head


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family."""

    model_type: str  # its name in config.json
    classifier: str | None  # class name of its sequence classifier in transformers; None: there is none
    keys: Mapping[str, str]  # {key of config.json: field of DecoderConfig}
    defaults: Mapping[str, Any]  # {key: value} of keys that may be missing
    tensors: tuple[TensorName, ...]  # one for each parameter
    other_tensors: tuple[TensorName, ...] = ()  # other names of some parameters, which are read too, but not written
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # {field of DecoderConfig: its value}
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # {key: the only value that is implemented}
    ignored_keys: frozenset[str] = frozenset()  # besides those of every family (`rmjax.models.families.keys`)
    # Settings that are not one key each: `read(values)` returns fields of DecoderConfig, of the file's values over
    # `defaults`; `write(config)` returns keys of config.json. `read_keys` are those that `read` uses.
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda values: {}
    write: Callable[[DecoderConfig], dict[str, Any]] = lambda config: {}
    read_keys: frozenset[str] = frozenset()
    # The rotary settings; None: queries and keys are not rotated.
    rope: Callable[[Mapping[str, Any], pathlib.Path], dict[str, Any]] | None = ropes.flat_rope
    partial_rotary: float | None = None  # part of a head that is rotated where config.json has none; None: always all
    nested_in: str = ""  # model_type of files that have this family's config as `text_config`
    aliases: frozenset[str] = frozenset()  # other values of model_type with the same meaning, which are not written
    base: str = "model."  # prefix of the names of tensors, but for the head's
    prefix: str = r"model\."  # regex of what files write for `base`
    # Regex of tensors that a reward model does not use: the language modeling head, buffers in old files.
    unused_tensors: str = r"lm_head\.weight|.*rotary_emb\.inv_freq"

    def read_config(self, values: dict[str, Any], path: pathlib.Path) -> DecoderConfig:
        """Returns the hyperparameters in the values of the config.json at `path`.

        Raises:
          InputError: a missing or unknown key, or a value that the decoder does not implement.
        """
        given = {key: value for key, value in values.items() if value is not None}
        heads = given.get("num_attention_heads") or self.defaults.get("num_attention_heads")
        size = given.get("hidden_size") or self.defaults.get("hidden_size")
        derived = {"num_key_value_heads": heads, "head_dim": heads and size and size // heads}
        rope = self.rope(values, path) if self.rope else {}
        rope = {key: value for key, value in rope.items() if value is not None}
        found = derived | dict(self.defaults) | given | {k: v for k, v in rope.items() if k == "rope_theta"}
        constants = {"rope_interleaved": False} | dict(self.constants)  # only the half-split layout
        for key, supported in constants.items():
            if (value := found.get(key, supported)) != supported:
                raise InputError(f"{path}: {key} is {value!r}; only {supported!r} is implemented")
        if missing := [key for key in self.keys if found.get(key) is None]:
            raise InputError(f"{path}: the key {missing[0]!r} is missing")
        known = {*self.keys, *constants, *self.read_keys, *self.ignored_keys, *(ropes.KEYS if self.rope else ())}
        check_unknown(values, known, path, self.model_type)
        fields: dict[str, Any] = {
            field: self._convert(key, field, found[key], path) for key, field in self.keys.items()
        }
        if (heads := fields["num_heads"]) < 1:
            raise InputError(f"{path}: the number of attention heads is {heads}; expected at least 1")
        fields = {"num_kv_heads": heads, "head_dim": fields["hidden_size"] // heads} | fields | dict(self.fields)
        if self.rope:
            fields |= self._rotary_dim(rope, found, fields["head_dim"], path)
            fields["rope_scaling"] = ropes.read_scaling(rope, found, fields["max_positions"], path)
        else:
            fields |= {"rope_theta": 1e4, "rope_scaling": None, "kinds": (LayerKind(rotary=False),)}
        try:
            return DecoderConfig(**fields | self.read(dict(self.defaults) | values))
        except ValueError as error:
            raise InputError(f"{path}: {error}") from error

    def write_config(self, config: DecoderConfig) -> dict[str, Any]:
        """Returns the values of a config.json that `read_config` reads back to an equal config."""
        keys = {key: getattr(config, field) for key, field in self.keys.items()}
        rope = {"rope_parameters": ropes.write_rope(config)} if self.rope else {}
        return {"model_type": self.model_type, **keys, **self.constants, **rope, **self.write(config)}

    def _convert(self, key: str, field: str, value: Any, path: pathlib.Path) -> Any:
        if field == "activation":
            if (name := _SAME_ACTIVATION.get(value, value)) not in ACTIVATIONS:
                raise InputError(f"{path}: {key} is {value!r}; implemented: {', '.join(ACTIVATIONS)}")
            return name
        return float(value) if _TYPES[field] is float else value

    def _rotary_dim(
        self, rope: Mapping[str, Any], found: Mapping[str, Any], head_dim: int, path: pathlib.Path
    ) -> dict[str, int]:
        part = rope.get("partial_rotary_factor", found.get("partial_rotary_factor", self.partial_rotary or 1.0))
        if part != 1.0 and self.partial_rotary is None:
            raise InputError(f"{path}: partial_rotary_factor is {part}; only 1.0 is implemented for {self.model_type}")
        return {"rotary_dim": dims if (dims := int(head_dim * part)) != head_dim else 0}


_TYPES = {field.name: field.type for field in dataclasses.fields(DecoderConfig)}
