"""Attention over packed prefix trees.

Token i attends to j iff j <= i, group[j] = group[i] != 0, and branch[j] is 0 (the shared prefix) or branch[i].

Two ways compute it. `dense` forms all T x T scores of a row; it is the reference, and the faster one for short rows.
`blocks` lists the pairs of (query block, key block) that hold a visible pair at all, once a batch, and works through
that list with a running softmax (Dao 2023, arXiv 2307.08691), in the backward pass again: what other groups and
branches of a row hold costs nothing, and no scores are kept. The list is worked through one pair at a time, which suits
a CPU: all sums are updated in place. Visiting several pairs at once needs scattered additions or a second pass over the
scores; both were slower.

Axis letters: B rows, T tokens, N query heads, H key/value heads, G = N / H, P head dimension, W tokens of a block.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from rmjax.core.mesh import AXES, ROWS

_BLOCK = 32  # W; the fastest of 32, 64 and 128 on CPU, forward and backward
_DENSE_UP_TO_ON_CPU = 256  # row length up to which `auto` takes `dense`; at 512 a layer took 1.25 times as long
_DENSE_UP_TO = 2048  # the same elsewhere: products in parallel, as long as the scores fit; not measured
_HIDDEN = -1e30  # the score of what may not be seen; finite, so that a row of padding gives no NaN

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


KEPT = "kept"  # the name under which `keep` marks what a backward pass shall not compute again


def keep(x: jax.Array) -> jax.Array:
    """Marks what is costly to compute and small to hold; see `remat` in `rmjax.models.decoder.RewardModel`."""
    return checkpoint_name(x, KEPT)


class Tokens(NamedTuple):
    """What decides who sees whom: int32 [B, T] each; `index` is the place in the row."""

    group: jax.Array
    branch: jax.Array
    index: jax.Array


class Visits(NamedTuple):
    """The pairs of blocks that hold a visible pair of tokens, on one device, query block by query block.

    query, key: int32 [1, pairs that there can be], indices of blocks; count: int32 [1], how many of them are real.
    """

    query: jax.Array
    key: jax.Array
    count: jax.Array


class Mask(NamedTuple):
    """Who sees whom in a batch, made once and used by every layer; `visits` is None for `dense`."""

    queries: Tokens
    keys: Tokens
    visits: Visits | None


# How the arrays lie on the mesh: a device holds its rows' keys whole and its part of their queries.
_QUERY_TOKENS = Tokens(*[PartitionSpec(ROWS, "sequence")] * 3)
_KEY_TOKENS = Tokens(*[PartitionSpec(ROWS, None)] * 3)
_VISITS = Visits(*[PartitionSpec((*ROWS, "sequence"))] * 3)
_QUERY = PartitionSpec(ROWS, "sequence", "tensor", None)
_KEY = PartitionSpec(ROWS, None, "tensor", None)


def make_mask(group: jax.Array, branch: jax.Array, kind: str) -> Mask:
    """Returns the mask of packed rows.

    Args:
      group, branch: int32 [B, T], as in `rmjax.data.schema.packed_spec`.
      kind: `dense`, `blocks`, or `auto`: the faster one at this row length.
    """
    tokens = Tokens(group, branch, jnp.broadcast_to(jnp.arange(group.shape[1], dtype=jnp.int32), group.shape))
    dense_up_to = _DENSE_UP_TO_ON_CPU if jax.default_backend() == "cpu" else _DENSE_UP_TO
    if kind == "dense" or (kind == "auto" and group.shape[1] <= dense_up_to):
        return Mask(tokens, tokens, None)
    visits = _on_mesh(_list_visits, (_QUERY_TOKENS, _KEY_TOKENS), _VISITS)(tokens, tokens)
    return Mask(tokens, tokens, visits)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    """softmax(q kᵀ / sqrt(P)) v over what `mask` lets each query see.

    Args:
      q: [B, T, N, P].
      k, v: [B, T, H, P]; N is a multiple of H, and query head n reads key head n // (N / H).

    Returns:
      [B, T, N, P] in q's dtype; softmax in float32. Padding gives finite values that nothing reads.
    """
    if mask.visits is None:
        return _dense(q, k, v, mask.queries, mask.keys)
    specs = (_QUERY, _KEY, _KEY, _QUERY_TOKENS, _KEY_TOKENS, _VISITS)
    return _on_mesh(_blocks, specs, _QUERY)(q, k, v, mask.queries, mask.keys, mask.visits)


def _on_mesh(function, in_specs, out_specs):
    """Runs `function` on each device's part of its arguments; each device lists and visits its own blocks."""
    mesh = jax.sharding.get_abstract_mesh()
    if all(mesh.shape.get(axis, 1) == 1 for axis in AXES):
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _visible(queries: Tokens, keys: Tokens) -> jax.Array:
    """Returns bool [..., queries, keys]."""
    group, branch, index = ((a[..., :, None], b[..., None, :]) for a, b in zip(queries, keys, strict=True))
    same = (group[0] == group[1]) & (group[0] != 0) & (index[1] <= index[0])
    return same & ((branch[1] == 0) | (branch[0] == branch[1]))


def _dense(q: jax.Array, k: jax.Array, v: jax.Array, queries: Tokens, keys: Tokens) -> jax.Array:
    b, t, n, p = q.shape
    q = q.reshape(b, t, k.shape[2], -1, p)
    scores = _einsum("bthgp,bshp->bhgts", q, k) * p**-0.5
    scores = jnp.where(_visible(queries, keys)[:, None, None], scores, _HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return _einsum("bhgts,bshp->bthgp", weights, v).astype(q.dtype).reshape(b, t, n, p)


def _width(length: int) -> int:
    return math.gcd(length, _BLOCK)


def _list_visits(queries: Tokens, keys: Tokens) -> Visits:
    rows, t = queries.group.shape
    wq, wk = _width(t), _width(keys.group.shape[1])
    nq, nk = t // wq, keys.group.shape[1] // wk
    seen = _visible(queries, keys).reshape(rows, nq, wq, nk, wk).any((2, 4))
    first = jnp.argsort(~seen.reshape(-1), stable=True).astype(jnp.int32)
    query, key = first // nk, first // (nq * nk) * nk + first % nk
    return Visits(query[None], key[None], seen.sum(dtype=jnp.int32)[None])


def _split(x: jax.Array, width: int, heads: int) -> jax.Array:
    """[B, T, N, P] -> [blocks, heads, G * W, P]: the query heads of one key head lie together."""
    b, t, n, p = x.shape
    x = x.reshape(b, t // width, width, heads, n // heads, p).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(b * t // width, heads, n // heads * width, p)


def _join(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Undoes `_split` to [B, T, N, P]."""
    b, t, n, p = shape
    heads = x.shape[1]
    width = x.shape[2] * heads // n
    x = x.reshape(b, t // width, heads, n // heads, width, p).transpose(0, 1, 4, 2, 3, 5)
    return x.reshape(shape)


def _cut(tokens: Tokens) -> Tokens:
    return Tokens(*(a.reshape(-1, _width(a.shape[1])) for a in tokens))


def _at(tree: Any, block: jax.Array) -> Any:
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, block, keepdims=False), tree)


def _put(x: jax.Array, block: jax.Array, value: jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(x, value, block, 0)


def _scores(q: jax.Array, k: jax.Array, queries: Tokens, keys: Tokens) -> jax.Array:
    """Masked scores [H, G * Wq, Wk] of a query block [H, G * Wq, P] with a key block [H, Wk, P]."""
    scores, visible = _einsum("hqp,hkp->hqk", q, k), _visible(queries, keys)
    return jnp.where(jnp.tile(visible, (scores.shape[1] // len(visible), 1)), scores, _HIDDEN)


def _visit_all(visits: Visits, start: Any, visit: Any) -> Any:
    """Folds `visit(state, query block, key block)` over the list."""
    step = lambda i, state: visit(state, visits.query[0, i], visits.key[0, i])
    return lax.fori_loop(0, visits.count[0], step, start)


@jax.custom_vjp
def _blocks(q, k, v, queries: Tokens, keys: Tokens, visits: Visits) -> jax.Array:
    return _forward(q, k, v, queries, keys, visits)[0]


def _forward(q, k, v, queries, keys, visits):
    own, other = _cut(queries), _cut(keys)
    wq, wk, heads = own.group.shape[1], other.group.shape[1], k.shape[2]
    qs = _split(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), wq, heads)
    ks, vs = _split(k, wk, heads), _split(v, wk, heads)

    def visit(state, a, b):
        top, total, weighted = _at(state, a)
        scores = _scores(_at(qs, a), _at(ks, b), _at(own, a), _at(other, b))
        new_top = jnp.maximum(top, scores.max(-1))
        weights, shrink = jnp.exp(scores - new_top[..., None]), jnp.exp(top - new_top)
        add = _einsum("hqk,hkp->hqp", weights.astype(v.dtype), _at(vs, b))
        new = new_top, total * shrink + weights.sum(-1), weighted * shrink[..., None] + add
        return jax.tree.map(lambda x, value: _put(x, a, value), state, new)

    zero = jnp.zeros(qs.shape[:-1])
    top, total, weighted = _visit_all(visits, (zero + _HIDDEN, zero, jnp.zeros(qs.shape)), visit)
    total = jnp.maximum(total, 1e-30)
    out = keep(_join((weighted / total[..., None]).astype(q.dtype), q.shape))
    return out, (q, k, v, queries, keys, visits, out, keep(top + jnp.log(total)))


def _backward(saved, d_out):
    q, k, v, queries, keys, visits, out, normaliser = saved
    own, other = _cut(queries), _cut(keys)
    wq, wk, heads = own.group.shape[1], other.group.shape[1], k.shape[2]
    scale = jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    # Σ_j weight_ij dweight_ij = Σ_p out dout
    inner = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    inner, qs, d_outs = (_split(x, wq, heads) for x in (inner, q * scale, d_out))
    ks, vs = _split(k, wk, heads), _split(v, wk, heads)

    def visit(state, a, b):
        dq, dk, dv = state
        q_a, k_b, d_out_a = _at(qs, a), _at(ks, b), _at(d_outs, a)
        scores = _scores(q_a, k_b, _at(own, a), _at(other, b))
        weights = jnp.where(scores > _HIDDEN / 2, jnp.exp(scores - _at(normaliser, a)[..., None]), 0.0)
        d_weights = _einsum("hqp,hkp->hqk", d_out_a, _at(vs, b))
        d_scores = (weights * (d_weights - _at(inner, a))).astype(q.dtype)
        dq = _put(dq, a, _at(dq, a) + _einsum("hqk,hkp->hqp", d_scores, k_b))
        dk = _put(dk, b, _at(dk, b) + _einsum("hqk,hqp->hkp", d_scores, q_a))
        dv = _put(dv, b, _at(dv, b) + _einsum("hqk,hqp->hkp", weights.astype(q.dtype), d_out_a))
        return dq, dk, dv

    dq, dk, dv = _visit_all(visits, tuple(jnp.zeros(x.shape) for x in (qs, ks, vs)), visit)
    dq = _join(dq * scale, q.shape).astype(q.dtype)
    return dq, _join(dk, k.shape).astype(k.dtype), _join(dv, v.shape).astype(v.dtype), None, None, None


_blocks.defvjp(_forward, _backward)
