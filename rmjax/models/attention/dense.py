"""The kernel `dense`: all T x T scores of a row at once; the reference implementation, and the fastest on short rows.

Axis letters: B rows, T tokens (S as keys), N query heads, H key/value heads, G = N / H, P head dimension.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rmjax.models.attention.mask import MASKED, Kernel, Options, Tokens, cap, einsum, visible


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, tokens: Tokens, _: Any, options: Options) -> jax.Array:
    b, t, n, p = q.shape
    q = q.reshape(b, t, k.shape[2], -1, p)
    scores = cap(einsum("bthgp,bshp->bhgts", q, k) * options.scale, options)
    scores = jnp.where(visible(tokens, tokens, options.window)[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return einsum("bhgts,bshp->bthgp", weights, v).astype(q.dtype).reshape(b, t, n, p)


DENSE = Kernel(prepare=lambda tokens, window: None, attend=_attend)
