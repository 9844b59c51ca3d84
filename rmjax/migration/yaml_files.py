"""YAML configurations with OmegaConf's interpolations, and Hydra's overrides on top of them."""

import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from rmjax.core.errors import InputError

_WHOLE = re.compile(r"\$\{(\.*[\w.]+)\}")
_OVERRIDE = re.compile(r"\+{0,2}([\w.]+)=(.*)", re.DOTALL)


def read(path: pathlib.Path, overrides: Sequence[str] = (), whole: Sequence[str] = ()) -> dict[str, Any]:
    """Returns {dotted key: value} of a YAML file; `${a.b}` and `${.b}` are replaced where that key has a value.

    Other interpolations (`${oc.env:X}`, `${multiply:…}`) stay texts.

    Args:
      overrides: KEY=VALUE, +KEY=VALUE or ++KEY=VALUE each, as Hydra takes them.
      whole: keys whose value is a mapping that is kept as it is.

    Raises:
      InputError: the file cannot be read, is no mapping, or an interpolation refers to itself.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: holds {type(tree).__name__}; expected a mapping of keys to values")
    tree.pop("defaults", None)  # Hydra's list of other files, none of which changes a result
    values = dict(_flatten(tree, "", whole))
    for override in overrides:
        if (match := _OVERRIDE.fullmatch(override)) is None:
            raise InputError(f"{override}: expected KEY=VALUE, an override of a key of {path}")
        try:
            value = yaml.safe_load(match[2])
        except yaml.YAMLError as error:
            raise InputError(f"{override}: not a YAML value ({' '.join(str(error).split())})") from error
        values = {key: old for key, old in values.items() if not key.startswith(f"{match[1]}.")}
        values |= dict(_flatten({match[1]: value}, "", whole))
    return {key: _resolve(key, value, values, (key,), path) for key, value in values.items()}


def _flatten(tree: Mapping[str, Any], prefix: str, whole: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in whole:
            yield from _flatten(value, f"{name}.", whole)
        else:
            yield name, value


def _resolve(key: str, value: Any, values: Mapping[str, Any], seen: tuple[str, ...], path: pathlib.Path) -> Any:
    """Returns the value of a key with its interpolation replaced, if it is one reference to a key with a value."""
    if not isinstance(value, str) or (match := _WHOLE.fullmatch(value)) is None:
        return value
    target = match[1]
    if target.startswith("."):  # one dot: a sibling; each further dot: a level up
        dots = len(target) - len(target.lstrip("."))
        target = ".".join([*key.split(".")[:-dots], target[dots:]])
    if target in seen:
        raise InputError(f"{path}: {key} refers to itself ({' -> '.join((*seen, target))})")
    if target not in values:
        return value
    return _resolve(target, values[target], values, (*seen, target), path)
