"""Tables that most model families share: keys of config.json, their defaults, and names of tensors."""

from collections.abc import Collection, Mapping
from typing import Any

from rmjax.models.families.family import TensorName

# {key of config.json: field of DecoderConfig}
KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_theta",
    "max_position_embeddings": "max_positions",
    "initializer_range": "initializer_range",
    "hidden_act": "activation",
}
ATTENTION_BIAS = {"attention_bias": "attention_bias"}
MLP_BIAS = {"mlp_bias": "mlp_bias"}
DEFAULTS: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "rope_theta": 1e4,
    "hidden_act": "silu",
}
NO_BIAS = {"attention_bias": False, "mlp_bias": False}  # fields of DecoderConfig

# {path of a linear map in a layer: its name}
LINEAR = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.o_proj",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}
FUSED_QKV = dict.fromkeys(("attention/query", "attention/key", "attention/value"), "self_attn.qkv_proj")
FUSED_MLP = dict.fromkeys(("mlp/gate", "mlp/up"), "mlp.gate_up_proj")

# {path of a norm in a layer: its name}
PRE_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
POST_NORMS = {"attention_output_norm": "post_attention_layernorm", "mlp_output_norm": "post_feedforward_layernorm"}
SANDWICH_NORMS = POST_NORMS | {"attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"}
QK_NORMS = {"attention/query_norm": "self_attn.q_norm", "attention/key_norm": "self_attn.k_norm"}
ONE_NORM = {"attention_norm": "input_layernorm"}  # of attention and MLP in parallel


def rename_keys(names: Mapping[str, str]) -> dict[str, str]:
    """Returns `KEYS` with other names of some keys, without those whose name is empty."""
    return {name: field for key, field in KEYS.items() if (name := names.get(key, key))}


def without_gate(linear: Mapping[str, str] = LINEAR) -> dict[str, str]:
    """Returns the linear maps of layers whose MLP has no gate."""
    return {path: name for path, name in linear.items() if path != "mlp/gate"}


def make_tensors(
    linear: Mapping[str, str] = LINEAR,
    norms: Mapping[str, str] = PRE_NORMS,
    *,
    embedding: str = "model.embed_tokens",
    positions: str = "",
    layers: str = "model.layers",
    norm: str = "model.norm",
    transposed: bool = True,
    by_head: Collection[str] = (),
) -> tuple[TensorName, ...]:
    """Returns the table of a decoder with these linear maps and norms in each layer, with `score` as its head.

    Args:
      embedding, positions, layers, norm: names of the modules; positions: of the learned position embedding.
      transposed: of the layers' matrices (`TensorName`).
      by_head: names in `linear` (`TensorName`).
    """
    of_layer: list[TensorName] = []
    for path, module in linear.items():
        name = TensorName(f"decoder/layers/{path}/kernel", f"{layers}.{{}}.{module}.weight", transposed)
        of_layer.append(name._replace(by_head=module in by_head))
        name = TensorName(f"decoder/layers/{path}/bias", f"{layers}.{{}}.{module}.bias", False)
        of_layer.append(name._replace(by_head=module in by_head))
    for path, module in norms.items():
        of_layer.append(TensorName(f"decoder/layers/{path}/scale", f"{layers}.{{}}.{module}.weight", False))
        of_layer.append(TensorName(f"decoder/layers/{path}/bias", f"{layers}.{{}}.{module}.bias", False))
    return (
        TensorName("decoder/embedding/weight", f"{embedding}.weight", False),
        *((TensorName("decoder/position_embedding/weight", f"{positions}.weight", False),) if positions else ()),
        *of_layer,
        TensorName("decoder/norm/scale", f"{norm}.weight", False),
        TensorName("decoder/norm/bias", f"{norm}.bias", False),
        TensorName("head/kernel", "score.weight", True),
    )
