"""Matrices of the layers as int8 with a scale for each column: W ≈ int8 · scale, with int8 = round(W / scale).

The scale is max|W| / 127 of the column, so the error of an element is at most scale / 2 (symmetric quantization by
channel; Jacob et al. 2018, arXiv 1712.05877, with zero points 0). Only parameters that are not trained can be int8. In
the parameter tree, such a kernel is {"int8": int8 [L, I, O], "scale": float32 [L, 1, O]}; that of experts has an axis
of theirs after L. Axis letters: L layers, I inputs, O outputs of a linear map.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rmjax.core import pytree

_MATRIX = re.compile(r"decoder/layers/(?!mlp/(router|shared_weight)/).*/kernel")  # routers compute in float32
_VALUES, _SCALE = "/int8", "/scale"
PATTERN = r"/kernel(/int8|/scale)$"


def is_part(path: str) -> bool:
    """Returns whether the parameter at `path` is a part of an int8 matrix."""
    return re.search(PATTERN, path) is not None


def is_quantized(path: str) -> bool:
    """Returns whether the kernel at `path` is one that `quantize` changes."""
    return _MATRIX.fullmatch(path) is not None


def parts_of(path: str) -> tuple[str, str]:
    """Returns the paths of the int8 values and of the scales of the kernel at `path`."""
    return path + _VALUES, path + _SCALE


def is_matrix(node: Any) -> bool:
    """Returns whether a node of the parameter tree is an int8 matrix."""
    return isinstance(node, Mapping) and "int8" in node


def quantize(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters with the layers' matrices as int8; those that are so already are not changed."""
    leaves: dict[str, jax.Array] = {}
    found = pytree.flatten(params)
    del params  # unless the caller keeps them, each matrix is freed when the next one is converted
    for path in list(found):
        leaf = found.pop(path)
        leaves |= dict(zip(parts_of(path), quantize_matrix(leaf), strict=True)) if is_quantized(path) else {path: leaf}
    return pytree.unflatten(leaves)


@jax.jit
def quantize_matrix(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns int8 values [..., I, O] and scales float32 [..., 1, O] of a kernel [..., I, O]."""
    values = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(values), axis=-2, keepdims=True) / 127
    scale = jnp.where(scale > 0, scale, 1.0)
    return jnp.round(values / scale).astype(jnp.int8), scale


def dequantize(params: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Returns the parameters with matrices in `dtype` in place of int8 ones."""
    leaves = pytree.flatten(params)
    for path in [path for path in leaves if is_part(path) and path.endswith(_VALUES)]:
        kernel = path.removesuffix(_VALUES)
        matrix = {"int8": leaves.pop(path), "scale": leaves.pop(kernel + _SCALE)}
        leaves[kernel] = jax.jit(lambda matrix: to_float32(matrix).astype(dtype))(matrix)
    return pytree.unflatten(leaves)


def to_float32(matrix: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the float32 matrix that an int8 matrix represents."""
    return matrix["int8"].astype(jnp.float32) * matrix["scale"]


def dot(x: jax.Array, matrix: Mapping[str, jax.Array]) -> jax.Array:
    """Returns x · W in x's dtype for an int8 matrix W of one layer: [..., I] · [I, O] -> [..., O].

    The int8 values, which are exact in x's dtype, are multiplied and accumulated in float32, and the scale is applied
    to the result. Only x has a gradient.
    """
    return _dot(x, matrix["int8"], matrix["scale"])


# By default the backward pass would keep the values that were cast to x's dtype, of all layers.
@jax.custom_vjp
def _dot(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
    product = jnp.matmul(x, values.astype(x.dtype), preferred_element_type=jnp.float32)
    return (product * scale[0]).astype(x.dtype)


def _forward(x: jax.Array, values: jax.Array, scale: jax.Array):
    return _dot(x, values, scale), (values, scale)


def _backward(residuals, dy: jax.Array):
    values, scale = residuals
    scaled = (dy.astype(jnp.float32) * scale[0]).astype(dy.dtype)
    dx = jnp.matmul(scaled, values.T.astype(dy.dtype), preferred_element_type=jnp.float32).astype(dy.dtype)
    return dx, None, None


_dot.defvjp(_forward, _backward)
