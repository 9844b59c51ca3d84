"""Cohere's Command R: attention and MLP in parallel after a layer norm without bias; windows in version 2."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rmjax.models.architecture import LayerKind
from rmjax.models.families.family import Family
from rmjax.models.families.layers import read_layer_types, write_layer_types
from rmjax.models.families.tables import ATTENTION_BIAS, DEFAULTS, LINEAR, ONE_NORM, make_tensors, rename_keys

COHERE = Family(
    model_type="cohere",
    classifier=None,
    keys=rename_keys({"rms_norm_eps": "layer_norm_eps"}) | ATTENTION_BIAS,
    defaults=DEFAULTS | {"layer_norm_eps": 1e-5, "rope_theta": 5e5},
    fields={"layer_norm": True, "mlp_bias": False, "parallel": "one", "rotary_interleaved": True},
    constants={"use_qk_norm": False},
    tensors=make_tensors(LINEAR, ONE_NORM),
)


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    is_sliding = lambda layer: (layer + 1) % values["sliding_window_pattern"] != 0
    return {"kinds": read_layer_types(values, values["sliding_window"], is_sliding, full=LayerKind(rotary=False))}


COHERE2 = dataclasses.replace(
    COHERE,
    model_type="cohere2",
    defaults=dict(COHERE.defaults) | {"rope_theta": 1e4, "sliding_window": 4096, "sliding_window_pattern": 4},
    constants={},
    read=_read,
    write=write_layer_types,
    read_keys=frozenset({"sliding_window", "sliding_window_pattern", "layer_types"}),
    # Of Cohere's own implementation; transformers ignores them.
    ignored_keys=frozenset(
        {
            "layer_switch",
            "order_of_interleaved_layers",
            "position_embedding_type",
            "rotary_pct",
            "use_embedding_sharing",
            "use_gated_activation",
            "use_parallel_block",
            "use_parallel_embedding",
        }
    ),
)
