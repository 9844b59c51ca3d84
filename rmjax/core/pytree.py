"""Paths of the leaves of pytrees, and rules that match them."""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from rmjax.core.errors import InputError

Value = TypeVar("Value")


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a JAX key path as a string: `params/decoder/norm/scale`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf}.

    >>> flatten({"head": {"kernel": 1.0, "bias": 0.0}})
    {'head/bias': 0.0, 'head/kernel': 1.0}
    """
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_with_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Returns the tree of `function(path, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_name(path), leaf), tree)


def match_one(rules: Sequence[tuple[str, Value]], path: str, kind: str) -> Value:
    """Returns the value of the only (regex, value) rule that matches `path`.

    Raises:
      InputError: no rule or several match; names the kind of rules, the path and the regexes.
    """
    found = [(pattern, value) for pattern, value in rules if re.search(pattern, path)]
    if len(found) != 1:
        patterns = ", ".join(repr(pattern) for pattern, _ in found) or "none"
        raise InputError(f"{kind} rules: {path!r} must match exactly one rule, but matches {patterns}")
    return found[0][1]
