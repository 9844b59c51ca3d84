"""Qwen 2 and 2.5: Llama with biases of queries, keys and values; Qwen 3: with norms of queries and keys instead."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rmjax.models.architecture import DecoderConfig
from rmjax.models.families.family import Family
from rmjax.models.families.layers import read_layer_types, write_layer_types
from rmjax.models.families.tables import ATTENTION_BIAS, DEFAULTS, KEYS, LINEAR, PRE_NORMS, QK_NORMS, make_tensors


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    window = values["sliding_window"] if values["use_sliding_window"] else None
    return {"kinds": read_layer_types(values, window, lambda layer: layer >= values["max_window_layers"])}


def _write(config: DecoderConfig) -> dict[str, Any]:
    return {"use_sliding_window": any(kind.window for kind in config.kinds), **write_layer_types(config)}


QWEN2 = Family(
    model_type="qwen2",
    classifier="Qwen2ForSequenceClassification",
    keys=KEYS,
    defaults=DEFAULTS | {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28},
    fields={"attention_bias": True, "output_bias": False, "mlp_bias": False},
    tensors=make_tensors(),
    read=_read,
    write=_write,
    read_keys=frozenset({"use_sliding_window", "sliding_window", "max_window_layers", "layer_types"}),
)
QWEN3 = dataclasses.replace(
    QWEN2,
    model_type="qwen3",
    classifier="Qwen3ForSequenceClassification",
    keys=KEYS | ATTENTION_BIAS,
    defaults=dict(QWEN2.defaults) | {"head_dim": 128},
    fields={"mlp_bias": False, "qk_norm": "head"},
    tensors=make_tensors(LINEAR, PRE_NORMS | QK_NORMS),
)
