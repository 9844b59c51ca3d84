"""Lists of the blocks of a mask with a visible pair of tokens."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Visits(NamedTuple):
    """For each block of one kind, the blocks of the other kind with a visible pair of tokens; int32."""

    blocks: jax.Array  # [B, outer blocks, inner blocks]: indices, fully visible blocks first; the rest is unused
    counts: jax.Array  # [B, outer blocks, 2]: number of the fully visible blocks, and of all that are listed


def list_visits(mask: jax.Array, outer: int, inner: int) -> Visits:
    """Returns the lists of a mask, bool [B, T, S], with blocks of at most `outer` and `inner` tokens."""
    rows, t, s = mask.shape
    outer, inner = math.gcd(t, outer), math.gcd(s, inner)
    blocks = mask.reshape(rows, t // outer, outer, s // inner, inner)
    some, every = blocks.any((2, 4)), blocks.all((2, 4))
    order = jnp.argsort(2 - some.astype(jnp.int32) - every, axis=-1, stable=True).astype(jnp.int32)
    return Visits(order, jnp.stack([every.sum(-1, dtype=jnp.int32), some.sum(-1, dtype=jnp.int32)], -1))
