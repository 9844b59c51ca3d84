"""Paths of the leaves of nested containers of arrays, and ordered rules over them."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from rmjax.core.errors import InputError

Value = TypeVar("Value")


def path_name(path: tuple[Any, ...]) -> str:
    """Joins a JAX key path with slashes: `params/decoder/norm/scale`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf}."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_paths(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Maps `function(path, leaf)` over the tree."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_name(path), leaf), tree)


def match_one(rules: Sequence[tuple[str, Value]], path: str, what: str) -> Value:
    """Returns the value of the one rule whose regex is found in `path`.

    Raises:
      InputError: no rule or more than one matches; names the path and the rules.
    """
    found = [(pattern, value) for pattern, value in rules if re.search(pattern, path)]
    if len(found) != 1:
        names = ", ".join(repr(pattern) for pattern, _ in found) or "none"
        raise InputError(f"{what} rules: {path!r} must match exactly one rule, but matches {names}")
    return found[0][1]
