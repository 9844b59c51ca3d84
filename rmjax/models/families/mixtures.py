"""Mixtures of experts: Mixtral, and those of Qwen 2 and 3; the dense families with a routed MLP in every layer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rmjax.models.architecture import DecoderConfig
from rmjax.models.families.family import Family, TensorName
from rmjax.models.families.layers import every_layer, read_layer_types, write_layer_types, write_window
from rmjax.models.families.mistral import MISTRAL
from rmjax.models.families.qwen import QWEN2, QWEN3
from rmjax.models.families.tables import KEYS, LINEAR, PRE_NORMS, QK_NORMS, make_tensors

_ATTENTION = {path: name for path, name in LINEAR.items() if path.startswith("attention/")}
_EXPERTS = {f"mlp/experts/{part}": f"mlp.experts.{{}}.{part}_proj" for part in ("gate", "up", "down")}
_ROUTER = {"mlp/router": "mlp.gate"}
_MIXTRAL_PARTS = {"gate": "w1", "up": "w3", "down": "w2"}
_SHARED = {f"mlp/shared/{part}": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")}
_SHARED["mlp/shared_weight"] = "mlp.shared_expert_gate"
_MIXTRAL = {"mlp/router": "block_sparse_moe.gate"}
_MIXTRAL |= {f"mlp/experts/{part}": f"block_sparse_moe.experts.{{}}.{name}" for part, name in _MIXTRAL_PARTS.items()}
# As transformers 5 holds them, and writes them with `save_original_format=False`.
_FUSED = (
    TensorName("decoder/layers/mlp/experts/gate/kernel", "model.layers.{}.mlp.experts.gate_up_proj", True),
    TensorName("decoder/layers/mlp/experts/up/kernel", "model.layers.{}.mlp.experts.gate_up_proj", True),
    TensorName("decoder/layers/mlp/experts/down/kernel", "model.layers.{}.mlp.experts.down_proj", True),
    TensorName("decoder/layers/mlp/router/kernel", "model.layers.{}.mlp.gate.weight", True),
)
_QWEN_KEYS = {
    "num_experts_per_tok": "experts_per_token",
    "moe_intermediate_size": "expert_size",
    "norm_topk_prob": "normalize_experts",
}
_QWEN_DEFAULTS = {"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": None}
_QWEN_READ = frozenset({"use_sliding_window", "sliding_window", "decoder_sparse_step", "mlp_only_layers"})
_COUNTS = frozenset({"num_experts", "num_local_experts"})  # two names of the same key


def _read_count(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_experts": values.get("num_local_experts") or values["num_experts"]}


def _check_layers(values: Mapping[str, Any]) -> None:
    step, only = values["decoder_sparse_step"], values["mlp_only_layers"] or []
    if dense := [i for i in range(values["num_hidden_layers"]) if i in only or (i + 1) % step]:
        raise ValueError(
            f"decoder_sparse_step is {step} and mlp_only_layers is {only}, so that the layers {dense} have no experts; "
            "only experts in all layers are implemented"
        )


def _read_qwen3(values: Mapping[str, Any]) -> dict[str, Any]:
    _check_layers(values)
    window = values["sliding_window"] if values["use_sliding_window"] else None
    return {"kinds": every_layer(window), **_read_count(values)}


def _write_qwen3(config: DecoderConfig) -> dict[str, Any]:
    window = write_window(config)
    layers = {"decoder_sparse_step": 1, "mlp_only_layers": []}
    used = {"use_sliding_window": window["sliding_window"] is not None}
    return {"num_experts": config.num_experts, **layers, **used, **window}


def _read_qwen2(values: Mapping[str, Any]) -> dict[str, Any]:
    _check_layers(values)
    window = values["sliding_window"] if values["use_sliding_window"] else None
    is_sliding = lambda layer: layer % 2 == 0 and layer < values["max_window_layers"]
    return {"kinds": read_layer_types(values, window, is_sliding), **_read_count(values)}


def _write_qwen2(config: DecoderConfig) -> dict[str, Any]:
    return {**_write_qwen3(config), **write_layer_types(config)}


QWEN3_MOE = Family(
    model_type="qwen3_moe",
    classifier="Qwen3MoeForSequenceClassification",
    keys={**QWEN3.keys, **_QWEN_KEYS},
    defaults={key: value for key, value in QWEN3.defaults.items() if key != "head_dim"}
    | _QWEN_DEFAULTS
    | {"num_experts": 128},
    fields=QWEN3.fields,
    tensors=make_tensors(_ATTENTION | _ROUTER | _EXPERTS, PRE_NORMS | QK_NORMS),
    other_tensors=_FUSED,
    ignored_keys=frozenset({"max_window_layers"}),  # transformers ignores it
    read=_read_qwen3,
    write=_write_qwen3,
    read_keys=_QWEN_READ | _COUNTS,
)
QWEN2_MOE = Family(
    model_type="qwen2_moe",
    classifier="Qwen2MoeForSequenceClassification",
    keys={**KEYS, **_QWEN_KEYS, "shared_expert_intermediate_size": "shared_expert_size", "qkv_bias": "attention_bias"},
    defaults={**QWEN2.defaults, **_QWEN_DEFAULTS, "num_experts": 60, "qkv_bias": True},
    fields={"output_bias": False, "mlp_bias": False},
    tensors=make_tensors(_ATTENTION | _ROUTER | _EXPERTS | _SHARED),
    other_tensors=_FUSED,
    read=_read_qwen2,
    write=_write_qwen2,
    read_keys=_QWEN_READ | _COUNTS | {"max_window_layers", "layer_types"},
)
MIXTRAL = dataclasses.replace(
    MISTRAL,
    model_type="mixtral",
    classifier="MixtralForSequenceClassification",
    keys={**MISTRAL.keys, "num_experts_per_tok": "experts_per_token"},
    defaults={**MISTRAL.defaults, "num_experts": 8, "rope_theta": 1e6, "sliding_window": None},
    fields={**MISTRAL.fields, "normalize_experts": True},
    tensors=make_tensors(_ATTENTION | _MIXTRAL),
    other_tensors=_FUSED,
    read=lambda values: {"kinds": every_layer(values["sliding_window"]), **_read_count(values)},
    write=lambda config: {"num_local_experts": config.num_experts, **write_window(config)},
    read_keys=MISTRAL.read_keys | _COUNTS,
)
