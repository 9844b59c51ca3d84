"""EXAONE 4: norms of the outputs only, and of queries and keys; windows, beside which other layers do not rotate."""

from collections.abc import Mapping
from typing import Any

from rmjax.models.architecture import LayerKind
from rmjax.models.families.family import Family
from rmjax.models.families.layers import read_layer_types, write_layer_types
from rmjax.models.families.tables import DEFAULTS, KEYS, LINEAR, NO_BIAS, POST_NORMS, QK_NORMS, make_tensors


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    window, pattern = values["sliding_window"], values["sliding_window_pattern"]
    if isinstance(pattern, str):  # such as "LLLG"
        raise ValueError(f"sliding_window_pattern is {pattern!r}; expected a number, or `layer_types`")
    full = LayerKind(rotary=window is None)
    return {"kinds": read_layer_types(values, window, lambda layer: (layer + 1) % pattern != 0, full=full)}


EXAONE4 = Family(
    model_type="exaone4",
    classifier="Exaone4ForSequenceClassification",
    keys=KEYS,
    defaults=DEFAULTS | {"sliding_window": 4096, "sliding_window_pattern": 4},
    fields=NO_BIAS | {"pre_norms": False, "post_norms": True, "qk_norm": "head"},
    tensors=make_tensors(LINEAR, POST_NORMS | QK_NORMS),
    read=_read,
    write=write_layer_types,
    read_keys=frozenset({"sliding_window", "sliding_window_pattern", "layer_types"}),
)
