"""Mistral and Ministral: Llama with a window in all layers, or in those of `layer_types`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rmjax.models.families.family import Family
from rmjax.models.families.layers import every_layer, read_layer_types, write_layer_types, write_window
from rmjax.models.families.tables import DEFAULTS, KEYS, NO_BIAS, make_tensors


def _read(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"kinds": every_layer(values["sliding_window"])}


def _read_ministral(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"kinds": read_layer_types(values, values["sliding_window"], lambda layer: True)}


MISTRAL = Family(
    model_type="mistral",
    classifier="MistralForSequenceClassification",
    keys=KEYS,
    defaults=DEFAULTS | {"sliding_window": 4096},
    fields=NO_BIAS,
    tensors=make_tensors(),
    read=_read,
    write=write_window,
    read_keys=frozenset({"sliding_window"}),
    ignored_keys=frozenset({"layer_types"}),  # transformers ignores it
)
MINISTRAL = dataclasses.replace(
    MISTRAL,
    model_type="ministral",
    classifier="MinistralForSequenceClassification",
    read=_read_ministral,
    write=write_layer_types,
    read_keys=frozenset({"sliding_window", "layer_types"}),
    ignored_keys=frozenset(),
)
