"""Gemma: norms that multiply by 1 + scale, scaled embeddings, and a gated MLP with GELU."""

from collections.abc import Mapping
from typing import Any

from rmjax.models.families.family import Family
from rmjax.models.families.tables import ATTENTION_BIAS, DEFAULTS, KEYS, make_tensors

# Of all Gemmas
DEFAULTS_OF_ALL = DEFAULTS | {"head_dim": 256}
FIELDS = {"mlp_bias": False, "norm_offset": 1.0, "norm_float32": True}


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    # The official files say "gelu"; transformers reads it as the tanh approximation, with which they were trained.
    tanh = {"activation": "gelu_pytorch_tanh"} if values["hidden_act"] in (None, "gelu") else {}
    return {"embedding_scale": values["hidden_size"] ** 0.5, **tanh}


GEMMA = Family(
    model_type="gemma",
    classifier="GemmaForSequenceClassification",
    keys=KEYS | ATTENTION_BIAS,
    defaults=DEFAULTS_OF_ALL | {"hidden_act": "gelu_pytorch_tanh"},
    fields=FIELDS,
    tensors=make_tensors(),
    read=_read,
    ignored_keys=frozenset({"hidden_activation"}),
)
