"""Llama."""

from rmjax.models.families.family import Family
from rmjax.models.families.tables import ATTENTION_BIAS, DEFAULTS, KEYS, MLP_BIAS, make_tensors

LLAMA = Family(
    model_type="llama",
    classifier="LlamaForSequenceClassification",
    keys=KEYS | ATTENTION_BIAS | MLP_BIAS,
    defaults=DEFAULTS,
    tensors=make_tensors(),
    ignored_keys=frozenset({"is_llama_config"}),
)
