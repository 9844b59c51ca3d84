"""Seed-OSS: Llama with biases of queries, keys and values."""

from rmjax.models.families.family import Family
from rmjax.models.families.tables import ATTENTION_BIAS, DEFAULTS, KEYS, MLP_BIAS, make_tensors

SEED_OSS = Family(
    model_type="seed_oss",
    classifier="SeedOssForSequenceClassification",
    keys=KEYS | ATTENTION_BIAS | MLP_BIAS | {"attention_out_bias": "output_bias"},
    defaults=DEFAULTS | {"attention_bias": True, "attention_out_bias": False, "head_dim": 128},
    tensors=make_tensors(),
)
