"""Attention over packed prefix trees.

Token i attends to j iff j <= i, group[j] = group[i] and branch[j] is 0 (the shared prefix) or branch[i].

Axis letters: B rows, T tokens, N query heads, H key/value heads, P head dimension.
"""

import jax
import jax.numpy as jnp


class Mask(dict):
    pass


def make_mask(group, branch, kind):
    index = jnp.arange(group.shape[1])
    ok = (index[None, :] <= index[:, None])[None]
    ok &= group[:, :, None] == group[:, None, :]
    ok &= (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    return ok


def attend(q, k, v, mask):
    b, t, n, p = q.shape
    h = k.shape[2]
    q = q.reshape(b, t, h, n // h, p)
    s = jnp.einsum("bqhgp,bkhp->bhgqk", q, k, preferred_element_type=jnp.float32) * p**-0.5
    s = jnp.where(mask[:, None, None], s, -1e30)
    a = jax.nn.softmax(s, axis=-1).astype(v.dtype)
    return jnp.einsum("bhgqk,bkhp->bqhgp", a, v).reshape(b, t, n, p)
