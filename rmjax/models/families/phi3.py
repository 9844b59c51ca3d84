"""Phi 3 and 4: Llama with fused matrices, a part of each head rotated, and LongRoPE."""

from collections.abc import Mapping
from typing import Any

from rmjax.models.architecture import DecoderConfig
from rmjax.models.families.family import Family
from rmjax.models.families.layers import every_layer, write_window
from rmjax.models.families.tables import DEFAULTS, FUSED_MLP, FUSED_QKV, KEYS, LINEAR, NO_BIAS, make_tensors
from rmjax.models.rope import LongRopeScaling


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"kinds": every_layer(values["sliding_window"])}


def _write(config: DecoderConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    original = scaling.original_max_position_embeddings if isinstance(scaling, LongRopeScaling) else 4096
    return {"original_max_position_embeddings": original, **write_window(config)}


PHI3 = Family(
    model_type="phi3",
    classifier="Phi3ForSequenceClassification",
    keys=KEYS,
    defaults=DEFAULTS | {"sliding_window": None, "original_max_position_embeddings": 4096},
    fields=NO_BIAS,
    tensors=make_tensors(LINEAR | FUSED_QKV | FUSED_MLP),
    read=_read,
    write=_write,
    read_keys=frozenset({"sliding_window"}),
    partial_rotary=1.0,
)
