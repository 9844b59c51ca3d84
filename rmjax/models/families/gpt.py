"""The older families with layer norms and biases: GPT-2, OPT, GPT-J and GPT-NeoX (Pythia)."""

import pathlib
from collections.abc import Mapping
from typing import Any

from rmjax.models.architecture import DecoderConfig
from rmjax.models.families.family import Family
from rmjax.models.families.rope import flat_rope
from rmjax.models.families.tables import ATTENTION_BIAS, DEFAULTS, LINEAR, make_tensors, rename_keys

_FIELDS = {"layer_norm": True, "norm_bias": True, "mlp_gated": False}
_QKV = ("attention/query", "attention/key", "attention/value")
_DERIVED = {"num_key_value_heads": "", "head_dim": ""}  # keys that do not exist: as many as heads, D / N
_GPT_KEYS = rename_keys(
    _DERIVED
    | {
        "hidden_size": "n_embd",
        "intermediate_size": "",  # 4 · n_embd, or `n_inner`
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "rms_norm_eps": "layer_norm_epsilon",
        "rope_theta": "",
        "max_position_embeddings": "n_positions",
        "hidden_act": "activation_function",
    }
)
_GPT_DEFAULTS = {"initializer_range": 0.02, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
# Also the causal masks in old files.
_GPT_UNUSED = r"lm_head\.(weight|bias)|.*\.attn\.(masked_)?bias"
_GPT_PREFIX = r"(transformer\.)?(?=(wte|wpe|h|ln_f)\.)"  # GPT-2's own files have none


def _read_inner(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"intermediate_size": values.get("n_inner") or 4 * values["n_embd"]}


def _write_inner(config: DecoderConfig) -> dict[str, Any]:
    return {"n_inner": None if config.intermediate_size == 4 * config.hidden_size else config.intermediate_size}


def _read_gpt2(values: Mapping[str, Any]) -> dict[str, Any]:
    return _read_inner(values) | {"attention_scale": 0.0 if values["scale_attn_weights"] else 1.0}


def _write_gpt2(config: DecoderConfig) -> dict[str, Any]:
    return _write_inner(config) | {"scale_attn_weights": config.attention_scale == 0.0}


GPT2 = Family(
    model_type="gpt2",
    classifier="GPT2ForSequenceClassification",
    keys=_GPT_KEYS,
    defaults=_GPT_DEFAULTS | {"scale_attn_weights": True, "n_inner": None},
    fields=_FIELDS | {"attention_bias": True, "mlp_bias": True, "learned_positions": True},
    constants={"scale_attn_by_inverse_layer_idx": False},
    # The matrices are [inputs, outputs].
    tensors=make_tensors(
        dict.fromkeys(_QKV, "attn.c_attn")
        | {"attention/output": "attn.c_proj", "mlp/up": "mlp.c_fc", "mlp/down": "mlp.c_proj"},
        {"attention_norm": "ln_1", "mlp_norm": "ln_2"},
        embedding="transformer.wte",
        positions="transformer.wpe",
        layers="transformer.h",
        norm="transformer.ln_f",
        transposed=False,
    ),
    read=_read_gpt2,
    write=_write_gpt2,
    read_keys=frozenset({"n_inner", "scale_attn_weights"}),
    # `reorder_and_upcast_attn` changes the rounding alone.
    ignored_keys=frozenset(
        {"n_ctx", "reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation"}
        | {"summary_proj_to_labels", "summary_first_dropout"}
    ),
    rope=None,
    base="transformer.",
    prefix=_GPT_PREFIX,
    unused_tensors=_GPT_UNUSED,
)


def _read_opt(values: Mapping[str, Any]) -> dict[str, Any]:
    size, projected = values["hidden_size"], values.get("word_embed_proj_dim")
    if projected not in (None, size):
        raise ValueError(
            f"word_embed_proj_dim is {projected} and hidden_size is {size}; projections of embeddings (OPT-350m) are "
            "not implemented"
        )
    return {"attention_bias": values["enable_bias"], "mlp_bias": values["enable_bias"]}


def _write_opt(config: DecoderConfig) -> dict[str, Any]:
    return {"enable_bias": config.attention_bias, "word_embed_proj_dim": config.hidden_size}


OPT = Family(
    model_type="opt",
    classifier="OPTForSequenceClassification",
    keys=rename_keys(
        _DERIVED
        | {
            "intermediate_size": "ffn_dim",
            "rms_norm_eps": "",
            "rope_theta": "",
            "initializer_range": "init_std",
            "hidden_act": "activation_function",
        }
    ),
    defaults={"init_std": 0.02, "activation_function": "relu", "enable_bias": True},
    fields=_FIELDS | {"norm_eps": 1e-5, "learned_positions": True, "position_offset": 2},
    constants={"do_layer_norm_before": True, "layer_norm_elementwise_affine": True, "_remove_final_layer_norm": False},
    tensors=make_tensors(
        {path: LINEAR[path] for path in _QKV}
        | {"attention/output": "self_attn.out_proj", "mlp/up": "fc1", "mlp/down": "fc2"},
        {"attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm"},
        embedding="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        layers="model.decoder.layers",
        norm="model.decoder.final_layer_norm",
    ),
    read=_read_opt,
    write=_write_opt,
    read_keys=frozenset({"enable_bias", "word_embed_proj_dim"}),
    ignored_keys=frozenset({"dropout", "layerdrop", "activation_dropout"}),
    rope=None,
    base="model.decoder.",
    prefix=r"(model\.)?decoder\.",
)


def _read_gptj(values: Mapping[str, Any]) -> dict[str, Any]:
    size = values["n_embd"] // values["n_head"]
    dims = values.get("rotary_dim") or size
    return _read_inner(values) | {"rotary_dim": 0 if dims == size else dims}


def _write_gptj(config: DecoderConfig) -> dict[str, Any]:
    # Its rotation has no other settings.
    return _write_inner(config) | {"rotary_dim": config.rotary_dim or config.head_dim, "rope_parameters": None}


GPTJ = Family(
    model_type="gptj",
    classifier="GPTJForSequenceClassification",
    keys=_GPT_KEYS,
    defaults=_GPT_DEFAULTS | {"rotary_dim": 64, "n_inner": None},
    fields=_FIELDS
    | {"attention_bias": False, "mlp_bias": True, "parallel": "one", "rope_theta": 1e4, "rotary_interleaved": True},
    tensors=make_tensors(
        {path: LINEAR[path].replace("self_attn", "attn") for path in _QKV}
        | {"attention/output": "attn.out_proj", "mlp/up": "mlp.fc_in", "mlp/down": "mlp.fc_out"},
        {"attention_norm": "ln_1"},
        embedding="transformer.wte",
        layers="transformer.h",
        norm="transformer.ln_f",
    ),
    read=_read_gptj,
    write=_write_gptj,
    read_keys=frozenset({"n_inner", "rotary_dim"}),
    ignored_keys=GPT2.ignored_keys | {"rotary", "scale_attn_weights"},
    rope=lambda values, path: {},
    base="transformer.",
    prefix=_GPT_PREFIX,
    unused_tensors=_GPT_UNUSED,
)


def _neox_rope(values: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
    old = {"rope_theta": values.get("rotary_emb_base"), "partial_rotary_factor": values.get("rotary_pct")}
    return old | {key: value for key, value in flat_rope(values, path).items() if value is not None}


def _read_neox(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"parallel": "two" if values["use_parallel_residual"] else ""}


GPT_NEOX = Family(
    model_type="gpt_neox",
    classifier="GPTNeoXForSequenceClassification",
    keys=rename_keys(_DERIVED | {"rms_norm_eps": "layer_norm_eps"}) | ATTENTION_BIAS,
    defaults=DEFAULTS
    | {"attention_bias": True, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "use_parallel_residual": True},
    fields=_FIELDS | {"mlp_bias": True},
    tensors=make_tensors(
        dict.fromkeys(_QKV, "attention.query_key_value")
        | {"attention/output": "attention.dense", "mlp/up": "mlp.dense_h_to_4h", "mlp/down": "mlp.dense_4h_to_h"},
        embedding="gpt_neox.embed_in",
        layers="gpt_neox.layers",
        norm="gpt_neox.final_layer_norm",
        by_head=("attention.query_key_value",),
    ),
    read=_read_neox,
    write=lambda config: {"use_parallel_residual": bool(config.parallel)},
    read_keys=frozenset({"use_parallel_residual", "rotary_pct", "rotary_emb_base"}),
    rope=_neox_rope,
    partial_rotary=0.25,
    aliases=frozenset({"gpt_neox_reward_model"}),  # of OpenAssistant
    base="gpt_neox.",
    prefix=r"gpt_neox\.",
    unused_tensors=r"(embed_out|lm_head)\.weight|.*rotary_emb\.inv_freq|.*\.attention\.(masked_)?bias",
)
