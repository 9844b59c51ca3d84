"""Paths of the leaves of pytrees, and rules that match them."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

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


@jax.jit
def _finite_leaves(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)


def non_finite_paths(tree: Any) -> list[str]:
    """Returns the paths of the arrays that have a non-finite element; one pass over them on their devices.

    >>> non_finite_paths({"head": {"kernel": jnp.array([1.0, jnp.nan]), "bias": jnp.zeros(1)}})
    ['head/kernel']
    """
    return [path for path, finite in flatten(jax.device_get(_finite_leaves(tree))).items() if not finite]


def map_with_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Returns the tree of `function(path, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: function(path_name(path), leaf), tree)


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dicts of {path: leaf}.

    >>> unflatten({"head/bias": 0.0, "head/kernel": 1.0})
    {'head': {'bias': 0.0, 'kernel': 1.0}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def split(tree: Mapping[str, Any], condition: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the nested dicts with the leaves of `tree` whose path fulfills `condition`, and with the others.

    >>> split({"head": {"kernel": 1.0, "bias": 0.0}}, lambda path: path.endswith("bias"))
    ({'head': {'bias': 0.0}}, {'head': {'kernel': 1.0}})
    """
    leaves = flatten(tree)
    parts = [{path: leaf for path, leaf in leaves.items() if condition(path) == wanted} for wanted in (True, False)]
    return unflatten(parts[0]), unflatten(parts[1])


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dicts with the leaves of both trees, which have none in common.

    >>> merge({"head": {"bias": 0.0}}, {"head": {"kernel": 1.0}})
    {'head': {'bias': 0.0, 'kernel': 1.0}}
    """
    return unflatten(flatten(first) | flatten(second))


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
