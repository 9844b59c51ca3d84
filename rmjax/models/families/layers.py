"""Kinds of layers in config.json: `layer_types` and `sliding_window`."""

from collections.abc import Callable, Mapping
from typing import Any

from rmjax.models.architecture import DecoderConfig, LayerKind
from rmjax.models.families.rope import FULL, SLIDING

_NO_WINDOW = LayerKind()


def every_layer(window: int | None) -> tuple[LayerKind, ...]:
    """Returns the kinds of a decoder in which all layers have the same window; None: no window."""
    return (LayerKind(window=window or 0),)


def read_layer_types(
    values: Mapping[str, Any],
    window: int | None,
    is_sliding: Callable[[int], bool],
    *,
    full: LayerKind = _NO_WINDOW,
    theta: float = 0.0,
) -> tuple[LayerKind, ...]:
    """Returns the kinds of layers by `layer_types`, or by `is_sliding(layer)` where the file has none.

    Args:
      window: of the sliding layers; None: there is none.
      full: the kind of the other layers.
      theta: `rope_theta` of the sliding layers.

    Raises:
      ValueError: `layer_types` is not a list of known types, or has sliding layers although there is no window.
    """
    count = values["num_hidden_layers"]
    types = values.get("layer_types")
    if types is None:
        types = [SLIDING if window and is_sliding(i) else FULL for i in range(count)]
    if not isinstance(types, list) or len(types) < count or not set(types) <= {FULL, SLIDING}:
        raise ValueError(f"layer_types is {types!r}; expected {count} of {FULL!r} and {SLIDING!r}")
    types = types[:count]
    if SLIDING in types and not window:
        raise ValueError(f"layer_types has {SLIDING!r}, but there is no sliding_window")
    kinds = [LayerKind(window or 0, rope_theta=theta) if kind == SLIDING else full for kind in types]
    return shortest_period(kinds)


def shortest_period(kinds: list[LayerKind]) -> tuple[LayerKind, ...]:
    """Returns the shortest sequence that, repeated, begins with `kinds`.

    >>> len(shortest_period([LayerKind(), LayerKind(4), LayerKind()]))
    2
    """
    for period in range(1, len(kinds)):
        if all(kinds[i] == kinds[i % period] for i in range(len(kinds))):
            return tuple(kinds[:period])
    return tuple(kinds)


def write_window(config: DecoderConfig) -> dict[str, Any]:
    """Returns `sliding_window`: the window of the layers that have one, or None."""
    return {"sliding_window": next((kind.window for kind in config.kinds if kind.window), None)}


def write_layer_types(config: DecoderConfig) -> dict[str, Any]:
    """Returns `sliding_window` and `layer_types`."""
    types = [SLIDING if config.kind(i).window else FULL for i in range(config.num_layers)]
    return {**write_window(config), "layer_types": types}
