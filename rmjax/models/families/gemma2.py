"""Gemma 2: norms before and after attention and MLP, capped scores, and a window in every other layer."""

from collections.abc import Mapping
from typing import Any

from rmjax.models.architecture import DecoderConfig
from rmjax.models.families.family import Family
from rmjax.models.families.gemma import DEFAULTS_OF_ALL, FIELDS
from rmjax.models.families.layers import read_layer_types, write_layer_types
from rmjax.models.families.tables import ATTENTION_BIAS, KEYS, LINEAR, SANDWICH_NORMS, make_tensors

# Gemma 2 and 3 name the activation differently; `hidden_act` beside it is not used.
KEYS_FROM_2 = {key: field for key, field in KEYS.items() if field != "activation"} | {"hidden_activation": "activation"}


def read_scales(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the scales of the embeddings and of the attention's scores."""
    return {"embedding_scale": values["hidden_size"] ** 0.5, "attention_scale": values["query_pre_attn_scalar"] ** -0.5}


def write_scales(config: DecoderConfig) -> dict[str, Any]:
    """Returns `query_pre_attn_scalar`, an integer where it can be."""
    scalar = config.attention_scale**-2
    return {"query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar}


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    kinds = read_layer_types(values, values["sliding_window"], lambda layer: layer % 2 == 0)
    return {"kinds": kinds, "attention_softcap": float(values["attn_logit_softcapping"] or 0), **read_scales(values)}


def _write(config: DecoderConfig) -> dict[str, Any]:
    softcap = {"attn_logit_softcapping": config.attention_softcap or None}
    return {**softcap, **write_scales(config), **write_layer_types(config)}


GEMMA2 = Family(
    model_type="gemma2",
    classifier="Gemma2ForSequenceClassification",
    keys=KEYS_FROM_2 | ATTENTION_BIAS,
    defaults=DEFAULTS_OF_ALL
    | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "sliding_window": 4096,
    },
    fields=FIELDS | {"post_norms": True},
    tensors=make_tensors(LINEAR, SANDWICH_NORMS),
    read=_read,
    write=_write,
    read_keys=frozenset({"query_pre_attn_scalar", "attn_logit_softcapping", "sliding_window", "layer_types"}),
    ignored_keys=frozenset({"hidden_act"}),
)
