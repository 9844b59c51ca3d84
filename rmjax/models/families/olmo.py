"""OLMo 2: norms of the outputs only, and of all queries and keys; OLMo 3: with a window in three layers of four."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rmjax.models.architecture import DecoderConfig
from rmjax.models.families.family import Family
from rmjax.models.families.layers import read_layer_types, write_layer_types
from rmjax.models.families.rope import nested_rope, sliding_theta, write_nested_rope
from rmjax.models.families.tables import ATTENTION_BIAS, DEFAULTS, KEYS, LINEAR, POST_NORMS, QK_NORMS, make_tensors

_THETA = 5e5  # of OLMo 3


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    is_sliding = lambda layer: (layer + 1) % 4 != 0
    theta = sliding_theta(values, _THETA)
    return {"kinds": read_layer_types(values, values["sliding_window"], is_sliding, theta=theta)}


def _write(config: DecoderConfig) -> dict[str, Any]:
    return {**write_layer_types(config), **write_nested_rope(config, _THETA)}


OLMO2 = Family(
    model_type="olmo2",
    classifier="Olmo2ForSequenceClassification",
    keys=KEYS | ATTENTION_BIAS,
    defaults=DEFAULTS | {"rms_norm_eps": 1e-5},
    fields={"mlp_bias": False, "pre_norms": False, "post_norms": True, "norm_float32": True, "qk_norm": "all"},
    tensors=make_tensors(LINEAR, POST_NORMS | QK_NORMS),
)
OLMO3 = dataclasses.replace(
    OLMO2,
    model_type="olmo3",
    classifier="Olmo3ForSequenceClassification",
    defaults=dict(OLMO2.defaults) | {"rope_theta": _THETA, "sliding_window": 4096},
    read=_read,
    write=_write,
    rope=nested_rope,
    read_keys=frozenset({"sliding_window", "layer_types"}),
)
