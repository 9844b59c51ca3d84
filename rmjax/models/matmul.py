"""Products of activations with weights, float32 accumulation, fast in all three of y, dx and dw.

Axis letters: M activations (rows x tokens), D inputs, F outputs.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

_PARTS = 8  # in which a transposed copy is made; any number from 2 on is as fast


def dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns x · w in x's dtype, accumulated in float32: [..., D] · [D, F] -> [..., F].

    w is rounded to x's dtype for the product, while its gradient keeps w's own.

    On CPU, XLA turns the weights' gradient into a product with a transposed copy of dy, and computes all that dy
    depends on inside that strided copy: a fifth of a whole step. There the operands are flattened and held in memory
    as they are. Where tokens are split over devices flattening would gather them, so the plain product stays.
    """
    split_tokens = jax.sharding.get_abstract_mesh().shape.get("sequence", 1) > 1
    if jax.default_backend() != "cpu" or split_tokens:
        return jnp.dot(x, w.astype(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)
    return _dot(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], w.shape[-1])


def _product(a: jax.Array, b: jax.Array, contract_a: int, contract_b: int) -> jax.Array:
    return lax.dot_general(a, b, (((contract_a,), (contract_b,)), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    return _product(x, w.astype(x.dtype), 1, 0).astype(x.dtype)


def _forward(x: jax.Array, w: jax.Array):
    return _dot(x, w), (x, w)


def _backward(saved, dy: jax.Array):
    x, w = saved
    x, dy = lax.optimization_barrier((x, dy))
    dx = _product(dy, w.astype(x.dtype), 1, 1).astype(x.dtype)
    # XLA's fast bfloat16 kernel wants the left operand contracted along its last axis; otherwise it upcasts both.
    dw = _product(_transposed(x), dy, 1, 0) if x.dtype == jnp.bfloat16 else _product(x, dy, 0, 0)
    return dx, dw.astype(w.dtype)


_dot.defvjp(_forward, _backward)


def _transposed(x: jax.Array) -> jax.Array:
    """Returns the transpose of a bfloat16 matrix as a copy in memory, which XLA cannot fold into a product.

    As integers, because XLA would compute on bfloat16 in float32, and in parts, because it removes a loop of one.
    """
    m, d = x.shape
    step = m // math.gcd(m, _PARTS)
    bits = lax.bitcast_convert_type(x, jnp.uint16)

    def part(i: jax.Array, out: jax.Array) -> jax.Array:
        copy = lax.optimization_barrier(lax.dynamic_slice(bits, (i * step, 0), (step, d)).T)
        return lax.dynamic_update_slice(out, copy, (0, i * step))

    out = lax.fori_loop(0, m // step, part, jnp.zeros((d, m), jnp.uint16))
    return lax.bitcast_convert_type(out, x.dtype)
