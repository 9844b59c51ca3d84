"""The Llama family: conversion of its config.json and the names of its tensors."""

import dataclasses
import pathlib
from typing import Any

from rmjax.core.errors import InputError
from rmjax.core.files import read_json
from rmjax.models.architecture import DecoderConfig, RopeScaling

# (our path, Hugging Face's name, transposed there): one row a parameter; {} stands for the layer.
# Hugging Face keeps a linear map as [outputs, inputs], we as [inputs, outputs].
_LINEAR = ("attention/query", "attention/key", "attention/value", "attention/output", "mlp/gate", "mlp/up", "mlp/down")
_LINEAR_NAMES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                 "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
LLAMA: tuple[tuple[str, str, bool], ...] = (
    ("decoder/embedding/weight", "model.embed_tokens.weight", False),
    *((f"decoder/layers/{ours}/kernel", f"model.layers.{{}}.{theirs}.weight", True)
      for ours, theirs in zip(_LINEAR, _LINEAR_NAMES, strict=True)),
    *((f"decoder/layers/{ours}/bias", f"model.layers.{{}}.{theirs}.bias", False)
      for ours, theirs in zip(_LINEAR, _LINEAR_NAMES, strict=True)),
    ("decoder/layers/attention_norm/scale", "model.layers.{}.input_layernorm.weight", False),
    ("decoder/layers/mlp_norm/scale", "model.layers.{}.post_attention_layernorm.weight", False),
    ("decoder/norm/scale", "model.norm.weight", False),
    ("head/kernel", "score.weight", True),
)  # fmt: skip
# Known tensors that a reward model has no use for: the language-modelling head, and buffers of old checkpoints.
UNUSED = ("lm_head.weight",)
UNUSED_SUFFIX = "rotary_emb.inv_freq"

# Keys of a Llama config.json that say nothing about what a reward model computes.
_LLAMA_IRRELEVANT = {
    "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "model_type", "torch_dtype",
    "dtype", "transformers_version", "use_cache", "tie_word_embeddings", "id2label", "label2id", "num_labels",
    "problem_type", "pretraining_tp", "_name_or_path", "is_llama_config", "rope_interleaved", "attention_dropout",
    "_attn_implementation_autoset", "transformers.js_config", "classifier_dropout", "output_attentions",
    "output_hidden_states", "return_dict", "chunk_size_feed_forward", "is_encoder_decoder", "name_or_path",
}  # fmt: skip


def from_hugging_face(path: pathlib.Path) -> DecoderConfig:
    """Reads a Hugging Face config.json.

    Raises:
      InputError: another family, a missing key, or a key whose value this decoder does not implement.
    """
    values = read_json(path)
    family = values.get("model_type")
    if family != "llama":
        raise InputError(f"{path}: model_type is {family!r}; this version knows the Llama family ('llama')")
    unread = dict(values)

    def take(key: str, *default: Any) -> Any:
        if key not in unread and not default:
            raise InputError(f"{path}: the key {key!r} is missing")
        value = unread.pop(key, *default)
        return default[0] if value is None and default else value

    def only(key: str, allowed: Any) -> None:
        if (value := take(key, allowed)) != allowed:
            raise InputError(f"{path}: {key} is {value!r}; only {allowed!r} is implemented")

    only("hidden_act", "silu")
    if values.get("rope_interleaved"):
        raise InputError(f"{path}: rope_interleaved is true; only the half-split rotary layout is implemented")
    hidden, heads = take("hidden_size"), take("num_attention_heads")
    # transformers 5 keeps theta inside rope_parameters, 4 beside rope_scaling; both may be there.
    rope = take("rope_parameters", None) or {}
    scaling = take("rope_scaling", None) or rope
    theta = take("rope_theta", None) or rope.get("rope_theta")
    if theta is None:
        raise InputError(f"{path}: no rope_theta, neither at the top nor in rope_parameters")
    config = DecoderConfig(
        vocab_size=take("vocab_size"),
        hidden_size=hidden,
        intermediate_size=take("intermediate_size"),
        num_layers=take("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=take("num_key_value_heads", heads),
        head_dim=take("head_dim", hidden // heads),
        norm_eps=float(take("rms_norm_eps")),
        rope_theta=float(theta),
        rope_scaling=_rope_scaling(path, scaling),
        attention_bias=take("attention_bias", False),
        mlp_bias=take("mlp_bias", False),
        max_positions=take("max_position_embeddings"),
        initializer_range=float(take("initializer_range", 0.02)),
    )
    if unknown := sorted(set(unread) - _LLAMA_IRRELEVANT):
        raise InputError(
            f"{path}: the key {unknown[0]!r} = {unread[unknown[0]]!r} is not known for the Llama family "
            f"({len(unknown)} such); if it changes nothing, remove it from the file"
        )
    return config


def _rope_scaling(path: pathlib.Path, values: dict[str, Any]) -> RopeScaling | None:
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise InputError(f"{path}: rope_type is {kind!r}; 'default' and 'llama3' are implemented")
    try:
        return RopeScaling(**{field.name: values[field.name] for field in dataclasses.fields(RopeScaling)})
    except KeyError as error:
        raise InputError(f"{path}: rope scaling 'llama3' lacks the key {error}") from error


def to_hugging_face(config: DecoderConfig) -> dict[str, Any]:
    """Returns the config.json values that `from_hugging_face` reads back to an equal config."""
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if config.rope_scaling is not None:
        rope |= {"rope_type": "llama3", **dataclasses.asdict(config.rope_scaling)}
    return {
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "max_position_embeddings": config.max_positions,
        "initializer_range": config.initializer_range,
    }
