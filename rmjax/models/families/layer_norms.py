"""Families that are Llama with layer norms: StableLM, Nemotron, StarCoder 2 and Phi 1 and 2."""

from collections.abc import Mapping
from typing import Any

from rmjax.models.architecture import DecoderConfig
from rmjax.models.families.family import Family
from rmjax.models.families.layers import every_layer, write_window
from rmjax.models.families.tables import (
    ATTENTION_BIAS,
    DEFAULTS,
    LINEAR,
    MLP_BIAS,
    ONE_NORM,
    make_tensors,
    rename_keys,
    without_gate,
)

_FIELDS = {"layer_norm": True, "norm_bias": True}


def _read_stablelm(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"parallel": "one" if values["use_parallel_residual"] else ""}


STABLELM = Family(
    model_type="stablelm",
    classifier="StableLmForSequenceClassification",
    keys=rename_keys({"rms_norm_eps": "layer_norm_eps", "head_dim": ""}) | {"use_qkv_bias": "attention_bias"},
    defaults=DEFAULTS | {"layer_norm_eps": 1e-5, "use_qkv_bias": False, "use_parallel_residual": False},
    fields=_FIELDS | {"output_bias": False, "mlp_bias": False},
    constants={"qk_layernorm": False},
    tensors=make_tensors(),
    read=_read_stablelm,
    write=lambda config: {"use_parallel_residual": bool(config.parallel)},
    read_keys=frozenset({"use_parallel_residual"}),
    partial_rotary=0.25,
)
NEMOTRON = Family(
    model_type="nemotron",
    classifier="NemotronForSequenceClassification",
    keys=rename_keys({"rms_norm_eps": "norm_eps"}) | ATTENTION_BIAS | MLP_BIAS,
    defaults=DEFAULTS | {"hidden_act": "relu2", "norm_eps": 1e-5, "initializer_range": 0.0134},
    fields=_FIELDS | {"norm_offset": 1.0, "mlp_gated": False},
    tensors=make_tensors(without_gate()),
    partial_rotary=0.5,
)


def _read_starcoder2(values: Mapping[str, Any]) -> dict[str, Any]:
    biases = dict.fromkeys(("attention_bias", "mlp_bias"), values["use_bias"])
    return {"kinds": every_layer(values["sliding_window"]), **biases}


def _write_starcoder2(config: DecoderConfig) -> dict[str, Any]:
    return {"use_bias": config.attention_bias, **write_window(config)}


STARCODER2 = Family(
    model_type="starcoder2",
    classifier="Starcoder2ForSequenceClassification",
    keys=rename_keys({"rms_norm_eps": "norm_epsilon"}),
    defaults=DEFAULTS
    | {"hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "num_key_value_heads": 2, "initializer_range": 0.018042}
    | {"use_bias": True, "sliding_window": None},
    fields=_FIELDS | {"mlp_gated": False},
    constants={"mlp_type": "default", "norm_type": "layer_norm"},
    tensors=make_tensors(without_gate(LINEAR | {"mlp/up": "mlp.c_fc", "mlp/down": "mlp.c_proj"})),
    read=_read_starcoder2,
    write=_write_starcoder2,
    read_keys=frozenset({"use_bias", "sliding_window"}),
)
PHI = Family(
    model_type="phi",
    classifier="PhiForSequenceClassification",
    keys=rename_keys({"rms_norm_eps": "layer_norm_eps"}),
    defaults=DEFAULTS | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    fields=_FIELDS | {"attention_bias": True, "mlp_bias": True, "mlp_gated": False, "parallel": "one"},
    constants={"qk_layernorm": False},
    tensors=make_tensors(
        without_gate(LINEAR | {"attention/output": "self_attn.dense", "mlp/up": "mlp.fc1", "mlp/down": "mlp.fc2"}),
        ONE_NORM,
        norm="model.final_layernorm",
    ),
    partial_rotary=0.5,
    unused_tensors=r"lm_head\.(weight|bias)|.*rotary_emb\.inv_freq",
)
