"""Arcee: Llama with an MLP without a gate."""

from rmjax.models.families.family import Family
from rmjax.models.families.tables import ATTENTION_BIAS, DEFAULTS, KEYS, LINEAR, MLP_BIAS, make_tensors

ARCEE = Family(
    model_type="arcee",
    classifier="ArceeForSequenceClassification",
    keys=KEYS | ATTENTION_BIAS | MLP_BIAS,
    defaults=DEFAULTS | {"hidden_act": "relu2"},
    fields={"mlp_gated": False},
    tensors=make_tensors({path: name for path, name in LINEAR.items() if path != "mlp/gate"}),
)
