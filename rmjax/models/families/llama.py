"""The Llama family."""

from rmjax.models.families.family import Family, TensorName

_LINEAR = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.o_proj",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}
_LAYER, _NAME = "decoder/layers/", "model.layers.{}."

LLAMA = Family(
    model_type="llama",
    classifier="LlamaForSequenceClassification",
    keys={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "head_dim": "head_dim",
        "rms_norm_eps": "norm_eps",
        "rope_theta": "rope_theta",
        "attention_bias": "attention_bias",
        "mlp_bias": "mlp_bias",
        "max_position_embeddings": "max_positions",
        "initializer_range": "initializer_range",
    },
    defaults={"attention_bias": False, "mlp_bias": False, "initializer_range": 0.02, "rope_theta": 1e4},
    constants={"hidden_act": "silu"},
    ignored_keys=frozenset({"is_llama_config"}),
    tensors=(
        TensorName("decoder/embedding/weight", "model.embed_tokens.weight", False),
        *(TensorName(f"{_LAYER}{path}/kernel", f"{_NAME}{name}.weight", True) for path, name in _LINEAR.items()),
        *(TensorName(f"{_LAYER}{path}/bias", f"{_NAME}{name}.bias", False) for path, name in _LINEAR.items()),
        TensorName(f"{_LAYER}attention_norm/scale", f"{_NAME}input_layernorm.weight", False),
        TensorName(f"{_LAYER}mlp_norm/scale", f"{_NAME}post_attention_layernorm.weight", False),
        TensorName("decoder/norm/scale", "model.norm.weight", False),
        TensorName("head/kernel", "score.weight", True),
    ),
    # The language modeling head, and buffers in old checkpoints.
    unused_tensors=r"lm_head\.weight|.*rotary_emb\.inv_freq",
)
