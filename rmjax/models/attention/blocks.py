"""The kernel `blocks`: block-sparse attention with an online softmax (Dao 2023, arXiv 2307.08691).

The pairs of a query block and a key block with at least one visible pair of tokens are listed once per batch. The
forward and the backward pass iterate over that list, so masked blocks (other groups and branches) cost nothing, and no
scores are stored. One pair is processed at a time, which suits a CPU: all sums are updated in place. Several pairs at
once would need scattered additions or a second pass over the scores; both were measured to be slower.

Axis letters: B rows, T tokens, N query heads, H key/value heads, G = N / H, P head dimension, W tokens of a block.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from rmjax.core.mesh import ROWS
from rmjax.models.attention.mask import (
    KEY,
    KEY_TOKENS,
    MASKED,
    QUERY,
    QUERY_TOKENS,
    Kernel,
    Options,
    Tokens,
    cap,
    einsum,
    per_device,
    save_for_backward,
    visible,
)

_BLOCK = 32  # maximum of W; the fastest of 32, 64 and 128 on CPU, forward and backward

_PAIRS = PartitionSpec((*ROWS, "sequence"))  # a device has its own list of block pairs


class BlockPairs(NamedTuple):
    """The block pairs of one device with a visible pair of tokens, sorted by query block; int32."""

    query: jax.Array  # [1, number of all pairs]: block index
    key: jax.Array  # likewise
    size: jax.Array  # [1]: how many pairs are listed; the rest of the arrays is unused


def _prepare(tokens: Tokens, window: int) -> BlockPairs:
    list_pairs = functools.partial(_list_pairs, window=window)
    return per_device(list_pairs, (QUERY_TOKENS, KEY_TOKENS), _PAIRS)(tokens, tokens)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, tokens: Tokens, pairs: BlockPairs, options: Options) -> jax.Array:
    specs = (QUERY, KEY, KEY, QUERY_TOKENS, KEY_TOKENS, _PAIRS)
    attend_blocks = lambda *arrays: _attend_blocks(options, *arrays)
    return per_device(attend_blocks, specs, QUERY)(q, k, v, tokens, tokens, pairs)


BLOCKS = Kernel(_prepare, _attend)


def _width(length: int) -> int:
    return math.gcd(length, _BLOCK)


def _list_pairs(queries: Tokens, keys: Tokens, window: int) -> BlockPairs:
    rows, t = queries.group.shape
    wq, wk = _width(t), _width(keys.group.shape[1])
    nq, nk = t // wq, keys.group.shape[1] // wk
    needed = visible(queries, keys, window).reshape(rows, nq, wq, nk, wk).any((2, 4))
    order = jnp.argsort(~needed.reshape(-1), stable=True).astype(jnp.int32)
    query, key = order // nk, order // (nq * nk) * nk + order % nk
    return BlockPairs(query[None], key[None], needed.sum(dtype=jnp.int32)[None])


def _split(x: jax.Array, heads: int) -> jax.Array:
    """[B, T, N, P] -> [blocks, heads, G * W, P]: the query heads of one key head are adjacent."""
    b, t, n, p = x.shape
    width = _width(t)
    x = x.reshape(b, t // width, width, heads, n // heads, p).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(b * t // width, heads, n // heads * width, p)


def _join(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Reverts `_split` to [B, T, N, P]."""
    b, t, n, p = shape
    width, heads = _width(t), x.shape[1]
    x = x.reshape(b, t // width, heads, n // heads, width, p).transpose(0, 1, 4, 2, 3, 5)
    return x.reshape(shape)


def _split_all(scale: float, q, k, v, queries, keys):
    """Returns the blocks of the scaled queries, of keys and values, and of their tokens [blocks, W]."""
    tokens = [Tokens(*(a.reshape(-1, _width(a.shape[1])) for a in each)) for each in (queries, keys)]
    q = q * jnp.asarray(scale, q.dtype)
    return *(_split(x, k.shape[2]) for x in (q, k, v)), *tokens


def _get(tree: Any, block: jax.Array) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, block, keepdims=False), tree)


def _set(x: jax.Array, block: jax.Array, value: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(x, value, block, 0)


def _scores(options: Options, q: jax.Array, k: jax.Array, queries: Tokens, keys: Tokens) -> jax.Array:
    """Returns the masked scores [H, G * Wq, Wk] of a query block [H, G * Wq, P] and a key block [H, Wk, P]."""
    scores, mask = cap(einsum("hqp,hkp->hqk", q, k), options), visible(queries, keys, options.window)
    return jnp.where(jnp.tile(mask, (scores.shape[1] // len(mask), 1)), scores, MASKED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_blocks(options: Options, q, k, v, queries: Tokens, keys: Tokens, pairs: BlockPairs) -> jax.Array:
    return _forward(options, q, k, v, queries, keys, pairs)[0]


def _forward(options, q, k, v, queries, keys, pairs):
    qs, ks, vs, query_tokens, key_tokens = _split_all(options.scale, q, k, v, queries, keys)

    def update(i, state):
        a, b = pairs.query[0, i], pairs.key[0, i]
        maximum, denominator, numerator = _get(state, a)
        scores = _scores(options, _get(qs, a), _get(ks, b), _get(query_tokens, a), _get(key_tokens, b))
        new_maximum = jnp.maximum(maximum, scores.max(-1))
        weights, rescale = jnp.exp(scores - new_maximum[..., None]), jnp.exp(maximum - new_maximum)
        weighted = einsum("hqk,hkp->hqp", weights.astype(v.dtype), _get(vs, b))
        new = new_maximum, denominator * rescale + weights.sum(-1), numerator * rescale[..., None] + weighted
        return jax.tree.map(lambda x, value: _set(x, a, value), state, new)

    zeros = jnp.zeros(qs.shape[:-1])
    initial = zeros + MASKED, zeros, jnp.zeros(qs.shape)
    maximum, denominator, numerator = lax.fori_loop(0, pairs.size[0], update, initial)
    denominator = jnp.maximum(denominator, 1e-30)
    out = save_for_backward(_join((numerator / denominator[..., None]).astype(q.dtype), q.shape))
    return out, (q, k, v, queries, keys, pairs, out, save_for_backward(maximum + jnp.log(denominator)))


def _backward(options, residuals, d_out):
    q, k, v, queries, keys, pairs, out, log_normalizer = residuals
    qs, ks, vs, query_tokens, key_tokens = _split_all(options.scale, q, k, v, queries, keys)
    # Σ_j weight_ij dweight_ij = Σ_p out_ip dout_ip
    inner = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    inner, d_outs = (_split(x, k.shape[2]) for x in (inner, d_out))

    def update(i, state):
        a, b = pairs.query[0, i], pairs.key[0, i]
        dq, dk, dv = state
        q_a, k_b, d_out_a = _get(qs, a), _get(ks, b), _get(d_outs, a)
        scores = _scores(options, q_a, k_b, _get(query_tokens, a), _get(key_tokens, b))
        weights = jnp.where(scores > MASKED / 2, jnp.exp(scores - _get(log_normalizer, a)[..., None]), 0.0)
        d_weights = einsum("hqp,hkp->hqk", d_out_a, _get(vs, b))
        d_scores = weights * (d_weights - _get(inner, a))
        if options.softcap:  # the derivative of c tanh(s / c) is 1 - tanh²; masked scores are clipped, not infinite
            d_scores *= 1 - jnp.square(jnp.clip(scores / options.softcap, -1, 1))
        d_scores = d_scores.astype(q.dtype)
        dq = _set(dq, a, _get(dq, a) + einsum("hqk,hkp->hqp", d_scores, k_b))
        dk = _set(dk, b, _get(dk, b) + einsum("hqk,hqp->hkp", d_scores, q_a))
        dv = _set(dv, b, _get(dv, b) + einsum("hqk,hqp->hkp", weights.astype(q.dtype), d_out_a))
        return dq, dk, dv

    dq, dk, dv = lax.fori_loop(0, pairs.size[0], update, tuple(jnp.zeros(x.shape) for x in (qs, ks, vs)))
    dq = _join(dq * jnp.asarray(options.scale, q.dtype), q.shape).astype(q.dtype)
    return dq, _join(dk, k.shape).astype(k.dtype), _join(dv, v.shape).astype(v.dtype), None, None, None


_attend_blocks.defvjp(_forward, _backward)
