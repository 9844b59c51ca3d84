"""GLM and GLM 4: half of each head rotated in adjacent pairs, biases of queries, keys and values, a fused MLP."""

import dataclasses

from rmjax.models.families.family import Family
from rmjax.models.families.tables import ATTENTION_BIAS, DEFAULTS, FUSED_MLP, KEYS, LINEAR, PRE_NORMS, make_tensors

_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_output_norm": "post_self_attn_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "mlp_output_norm": "post_mlp_layernorm",
}

GLM = Family(
    model_type="glm",
    classifier="GlmForSequenceClassification",
    keys=KEYS | ATTENTION_BIAS,
    defaults=DEFAULTS | {"attention_bias": True, "head_dim": 128, "rms_norm_eps": 1.5625e-7},
    fields={"mlp_bias": False, "output_bias": False, "rotary_interleaved": True},
    tensors=make_tensors(LINEAR | FUSED_MLP, PRE_NORMS),
    partial_rotary=0.5,
)
GLM4 = dataclasses.replace(
    GLM,
    model_type="glm4",
    classifier="Glm4ForSequenceClassification",
    fields=dict(GLM.fields) | {"post_norms": True},
    tensors=make_tensors(LINEAR | FUSED_MLP, _NORMS),
)
