"""Matrix products of activations with weights, accumulated in float32, with a custom gradient on CPU.

Axis letters: M tokens of a batch (rows x tokens), D inputs, F outputs.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from rmjax.models.sharding import mesh_platform

_CHUNKS = 8  # of a transposed copy; any number from 2 on is equally fast


def dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns x · w in x's dtype, accumulated in float32: [..., D] · [D, F] -> [..., F].

    w is cast to x's dtype for the product; its gradient has w's dtype.

    On CPU, XLA computes the weight gradient from a transposed copy of dy and fuses the computation of dy into that
    strided copy, which costs a fifth of a train step. The CPU version flattens the operands and materializes them
    first. With tokens sharded over a `sequence` axis flattening would gather them, so there the plain product is used.
    """
    sequence_sharded = jax.sharding.get_abstract_mesh().shape.get("sequence", 1) > 1
    if mesh_platform() != "cpu" or sequence_sharded:
        return jnp.dot(x, w.astype(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)
    return _dot(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], w.shape[-1])


def _contract(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    return lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    return _contract(x, w.astype(x.dtype), 1, 0).astype(x.dtype)


def _forward(x: jax.Array, w: jax.Array):
    return _dot(x, w), (x, w)


def _backward(residuals, dy: jax.Array):
    x, w = residuals
    x, dy = lax.optimization_barrier((x, dy))
    dx = _contract(dy, w.astype(x.dtype), 1, 1).astype(x.dtype)
    # XLA's fast bfloat16 product contracts the last axis of the left operand; otherwise both are cast to float32.
    dw = _contract(_transpose(x), dy, 1, 0) if x.dtype == jnp.bfloat16 else _contract(x, dy, 0, 0)
    return dx, dw.astype(w.dtype)


_dot.defvjp(_forward, _backward)


def _transpose(x: jax.Array) -> jax.Array:
    """Returns the materialized transpose [D, M] of a bfloat16 matrix; XLA does not fuse it into a product.

    Copied as integers, since XLA would convert bfloat16 to float32, and in a loop of chunks, since XLA removes a loop
    with a single iteration.
    """
    m, d = x.shape
    size = m // math.gcd(m, _CHUNKS)
    bits = lax.bitcast_convert_type(x, jnp.uint16)

    def copy_chunk(i: jax.Array, out: jax.Array) -> jax.Array:
        chunk = lax.optimization_barrier(lax.dynamic_slice(bits, (i * size, 0), (size, d)).T)
        return lax.dynamic_update_slice(out, chunk, (0, i * size))

    out = lax.fori_loop(0, m // size, copy_chunk, jnp.zeros((d, m), jnp.uint16))
    return lax.bitcast_convert_type(out, x.dtype)
