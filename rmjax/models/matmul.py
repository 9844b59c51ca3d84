"""Matrix products of activations with weights, accumulated in float32, with custom gradients.

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

    The gradients are products of operands in x's dtype too, accumulated in float32: by default, the cast of the
    result would make dy float32, and so the backward pass several times as slow on a GPU.
    """
    # With tokens sharded over a `sequence` axis, the CPU version would gather them.
    sequence_sharded = jax.sharding.get_abstract_mesh().shape.get("sequence", 1) > 1
    if mesh_platform() != "cpu" or sequence_sharded:
        return _dot(x, w)
    return _dot_on_cpu(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], w.shape[-1])


def _contract(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    return lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    return _contract(x, w.astype(x.dtype), x.ndim - 1, 0).astype(x.dtype)


def _forward(x: jax.Array, w: jax.Array):
    return _dot(x, w), (x, w)


def _backward(residuals, dy: jax.Array):
    x, w = residuals
    dx = _contract(dy, w.astype(x.dtype), dy.ndim - 1, 1).astype(x.dtype)
    tokens = tuple(range(x.ndim - 1))
    dw = lax.dot_general(x, dy, ((tokens, tokens), ((), ())), preferred_element_type=jnp.float32)
    return dx, dw.astype(w.dtype)


_dot.defvjp(_forward, _backward)


@jax.custom_vjp
def _dot_on_cpu(x: jax.Array, w: jax.Array) -> jax.Array:
    """`_dot` of x [M, D].

    On CPU, XLA computes the weight gradient from a transposed copy of dy and fuses the computation of dy into that
    strided copy, which costs a fifth of a train step; here the operands are materialized first.
    """
    return _contract(x, w.astype(x.dtype), 1, 0).astype(x.dtype)


def _forward_on_cpu(x: jax.Array, w: jax.Array):
    return _dot_on_cpu(x, w), (x, w)


def _backward_on_cpu(residuals, dy: jax.Array):
    x, w = residuals
    x, dy = lax.optimization_barrier((x, dy))
    dx = _contract(dy, w.astype(x.dtype), 1, 1).astype(x.dtype)
    # XLA's fast bfloat16 product contracts the last axis of the left operand; otherwise both are cast to float32.
    # With rows sharded, the copy's loop would gather them.
    copied = x.dtype == jnp.bfloat16 and jax.sharding.get_abstract_mesh().size <= 1
    dw = _contract(_transpose(x), dy, 1, 0) if copied else _contract(x, dy, 0, 0)
    return dx, dw.astype(w.dtype)


_dot_on_cpu.defvjp(_forward_on_cpu, _backward_on_cpu)


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
