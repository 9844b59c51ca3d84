"""Granite: Llama with factors of the embeddings, the scores and the residual sums."""

from rmjax.models.families.family import Family
from rmjax.models.families.tables import ATTENTION_BIAS, DEFAULTS, KEYS, MLP_BIAS, make_tensors

_MULTIPLIERS = {
    "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention_scale",
    "residual_multiplier": "residual_scale",
}

GRANITE = Family(
    model_type="granite",
    classifier=None,
    keys=KEYS | ATTENTION_BIAS | MLP_BIAS | _MULTIPLIERS,
    defaults=DEFAULTS | dict.fromkeys(_MULTIPLIERS, 1.0),
    tensors=make_tensors(),
)
