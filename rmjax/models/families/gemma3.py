"""Gemma 3, text only: five layers with a window and a theta of their own to one without, norms of queries and keys."""

from collections.abc import Mapping
from typing import Any

from rmjax.models.architecture import DecoderConfig
from rmjax.models.families.family import Family
from rmjax.models.families.gemma import DEFAULTS_OF_ALL, FIELDS
from rmjax.models.families.gemma2 import KEYS_FROM_2, read_scales, write_scales
from rmjax.models.families.layers import read_layer_types, write_layer_types
from rmjax.models.families.rope import nested_rope, sliding_theta, write_nested_rope
from rmjax.models.families.tables import ATTENTION_BIAS, LINEAR, QK_NORMS, SANDWICH_NORMS, make_tensors

_SLIDING_THETA = 1e4


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    period = values.get("sliding_window_pattern") or values.get("_sliding_window_pattern") or 6
    theta = sliding_theta(values, _SLIDING_THETA)
    kinds = read_layer_types(values, values["sliding_window"], lambda layer: (layer + 1) % period != 0, theta=theta)
    return {"kinds": kinds, **read_scales(values)}


def _write(config: DecoderConfig) -> dict[str, Any]:
    return {**write_scales(config), **write_layer_types(config), **write_nested_rope(config, _SLIDING_THETA)}


GEMMA3_TEXT = Family(
    model_type="gemma3_text",
    classifier="Gemma3TextForSequenceClassification",
    keys=KEYS_FROM_2 | ATTENTION_BIAS,
    # All of them: `text_config` of files of transformers 4 has only what differs from these.
    defaults=DEFAULTS_OF_ALL
    | {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 131072,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
    fields=FIELDS | {"post_norms": True, "qk_norm": "head"},
    tensors=make_tensors(LINEAR, SANDWICH_NORMS | QK_NORMS),
    read=_read,
    write=_write,
    rope=nested_rope,
    read_keys=frozenset(
        {
            *("query_pre_attn_scalar", "sliding_window", "layer_types"),
            *("sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq"),
        }
    ),
    ignored_keys=frozenset({"hidden_act", "attn_logit_softcapping"}),
    nested_in="gemma3",
    prefix=r"(language_model\.model|model\.language_model|model)\.",
    unused_tensors=r"(language_model\.)?lm_head\.weight|(model\.)?(vision_tower|multi_modal_projector)\..*",
)
