"""Products of activations with weights, float32 accumulation, fast in all three of y, dx and dw.

Axis letters: M activations (rows x tokens), D inputs, F outputs.
"""

import jax
import jax.numpy as jnp
from jax import lax


def dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns x · w in x's dtype, accumulated in float32: [..., D] · [D, F] -> [..., F].

    On CPU, XLA turns the weights' gradient into a product with a transposed copy of dy, and computes all that dy
    depends on inside that strided copy: a fifth of a whole step. There the operands are flattened and held in memory
    as they are. Where tokens are split over devices flattening would gather them, so the plain product stays.
    """
    split_tokens = jax.sharding.get_abstract_mesh().shape.get("sequence", 1) > 1
    if jax.default_backend() != "cpu" or split_tokens:
        return jnp.dot(x, w, preferred_element_type=jnp.float32).astype(x.dtype)
    return _dot(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], w.shape[-1])


def _product(a: jax.Array, b: jax.Array, contract_a: int, contract_b: int) -> jax.Array:
    return lax.dot_general(a, b, (((contract_a,), (contract_b,)), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    return _product(x, w, 1, 0).astype(x.dtype)


def _forward(x: jax.Array, w: jax.Array):
    return _dot(x, w), (x, w)


def _backward(saved, dy: jax.Array):
    x, w = saved
    x, dy = lax.optimization_barrier((x, dy))
    return _product(dy, w, 1, 1).astype(x.dtype), _product(x, dy, 0, 0).astype(w.dtype)


_dot.defvjp(_forward, _backward)
