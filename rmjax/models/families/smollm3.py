"""SmolLM 3: Llama without rotation in every fourth layer."""

from collections.abc import Mapping
from typing import Any

from rmjax.models.architecture import DecoderConfig, LayerKind
from rmjax.models.families.family import Family
from rmjax.models.families.layers import read_layer_types, shortest_period, write_layer_types
from rmjax.models.families.tables import ATTENTION_BIAS, DEFAULTS, KEYS, MLP_BIAS, make_tensors


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    count, interval = values["num_hidden_layers"], values["no_rope_layer_interval"]
    # 1 stands for a rotation, in spite of the key's name.
    rotary = values.get("no_rope_layers") or [(layer + 1) % interval != 0 for layer in range(count)]
    if len(rotary) < count:
        raise ValueError(f"no_rope_layers has {len(rotary)} entries; expected {count}, one per layer")
    window = values["sliding_window"] if values["use_sliding_window"] else None
    kinds = read_layer_types(values, window, lambda layer: not rotary[layer])
    windows = [kinds[layer % len(kinds)].window for layer in range(count)]
    return {"kinds": shortest_period([LayerKind(windows[layer], bool(rotary[layer])) for layer in range(count)])}


def _write(config: DecoderConfig) -> dict[str, Any]:
    rotary = [int(config.kind(layer).rotary) for layer in range(config.num_layers)]
    sliding = any(kind.window for kind in config.kinds)
    return {"no_rope_layers": rotary, "use_sliding_window": sliding, **write_layer_types(config)}


SMOLLM3 = Family(
    model_type="smollm3",
    classifier="SmolLM3ForSequenceClassification",
    keys=KEYS | ATTENTION_BIAS | MLP_BIAS,
    defaults=DEFAULTS
    | {"rope_theta": 2e6, "use_sliding_window": False, "sliding_window": None, "no_rope_layer_interval": 4},
    tensors=make_tensors(),
    read=_read,
    write=_write,
    read_keys=frozenset(
        {*("no_rope_layers", "no_rope_layer_interval"), *("use_sliding_window", "sliding_window", "layer_types")}
    ),
    ignored_keys=frozenset({"max_window_layers"}),
)
