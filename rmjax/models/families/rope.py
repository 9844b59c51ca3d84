"""Rotary settings in config.json, as transformers 5 reads and writes them."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from rmjax.core.errors import InputError
from rmjax.models.architecture import DecoderConfig
from rmjax.models.rope import DynamicScaling, LinearScaling, Llama3Scaling, LongRopeScaling, RopeScaling, YarnScaling

KEYS = {"rope_parameters", "rope_scaling", "rope_theta", "original_max_position_embeddings", "partial_rotary_factor"}
_KINDS = {kind.rope_type: kind for kind in (LinearScaling, DynamicScaling, Llama3Scaling, YarnScaling, LongRopeScaling)}
_TYPES = {"su": "longrope"}  # other names of a type, in old files of Phi-3
FULL, SLIDING = "full_attention", "sliding_attention"  # layer types; also keys of nested settings


def flat_rope(values: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """Returns the rotary settings of a family whose layers share them, with the theta as `rope_theta` if it is given.

    `rope_scaling`, if set, replaces `rope_parameters`, whose theta precedes the one beside it.
    """
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in rope.values()):
        raise InputError(f"{path}: rope_parameters is {rope}; expected the same settings for all layers")
    return {"rope_theta": values.get("rope_theta")} | {key: value for key, value in rope.items() if value is not None}


def nested_rope(values: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """Returns the rotary settings of the layers with full attention in a family whose layer types have their own.

    Scaling beside them belongs to these layers; a `rope_parameters` without layer types is ignored, as in transformers.
    """
    nested = values.get("rope_parameters") or {}
    if (kind := (nested.get(SLIDING) or {}).get("rope_type", "default")) != "default":
        raise InputError(f"{path}: rope_type of {SLIDING} is {kind!r}; only 'default' is implemented")
    rope = (nested.get(FULL) or {}) | (values.get("rope_scaling") or {})
    return {"rope_theta": values.get("rope_theta")} | {key: value for key, value in rope.items() if value is not None}


def sliding_theta(values: Mapping[str, Any], default: float) -> float:
    """Returns theta of the sliding layers in a family whose layer types have their own."""
    nested = (values.get("rope_parameters") or {}).get(SLIDING) or {}
    return float(nested.get("rope_theta") or values.get("rope_local_base_freq") or default)


def read_scaling(
    rope: Mapping[str, Any], values: Mapping[str, Any], max_positions: int, path: pathlib.Path
) -> RopeScaling | None:
    """Returns the scaling in the rotary settings `rope` of the config.json `values`.

    Raises:
      InputError: the type is not implemented, or a key is missing.
    """
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type == "default":
        return None
    if (kind := _KINDS.get(_TYPES.get(rope_type, rope_type))) is None:
        known = ", ".join(map(repr, ("default", *_KINDS)))
        raise InputError(f"{path}: rope_type is {rope_type!r}; implemented: {known}")
    original = values.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    original = original or max_positions
    rope = {"factor": max_positions / original, **rope, "original_max_position_embeddings": original}
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in rope:
            value = rope[field.name]
            found[field.name] = tuple(map(float, value)) if isinstance(value, list) else value
        elif field.default is dataclasses.MISSING:
            raise InputError(f"{path}: rope scaling {rope_type!r}: the key {field.name!r} is missing")
    return kind(**found)


def write_rope(config: DecoderConfig) -> dict[str, Any]:
    """Returns the rotary settings of a config, for `rope_parameters`."""
    scaling = config.rope_scaling
    values = {} if scaling is None else dataclasses.asdict(scaling)
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    values = {key: value for key, value in values.items() if value is not None}
    rope_type = "default" if scaling is None else scaling.rope_type
    partial = {"partial_rotary_factor": config.rotary_dim / config.head_dim} if config.rotary_dim else {}
    return {"rope_theta": config.rope_theta, "rope_type": rope_type, **values, **partial}


def write_nested_rope(config: DecoderConfig, default: float) -> dict[str, Any]:
    """Returns `rope_parameters` of a family whose layer types have their own; `default`: theta of sliding layers."""
    theta = next((kind.rope_theta for kind in config.kinds if kind.rope_theta), default)
    sliding = {"rope_theta": theta, "rope_type": "default"}
    return {"rope_parameters": {FULL: write_rope(config), SLIDING: sliding}}
