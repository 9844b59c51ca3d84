"""Attention over packed prefix trees.

Token i attends to j iff j <= i, group[j] = group[i] != 0, and branch[j] is 0 (the shared prefix) or branch[i].

Two ways compute it. `dense` forms all T x T scores of a row; it is the reference, and the faster one for short rows.
`blocks` lists the pairs of (query block, key block) that hold a visible pair at all, once a batch, and works through
that list with a running softmax (Dao 2023, arXiv 2307.08691), in the backward pass again: what other groups and
branches of a row hold costs nothing, and no scores are kept.

Axis letters: B rows, T tokens, N query heads, H key/value heads, G = N / H, P head dimension, W tokens of a block,
C chunks of `_LANES` query blocks that are worked on together.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from rmjax.core.mesh import AXES, ROWS

_BLOCK = 64  # W
_LANES = 8  # query blocks a chunk; 8 was the fastest of 4 to 32 on CPU
_DENSE_UP_TO = 512  # row length up to which `auto` takes `dense`
_HIDDEN = -1e30  # the score of what may not be seen; finite, so that a row of padding gives no NaN

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class Tokens(NamedTuple):
    """What decides who sees whom: int32 [B, T] each; `index` is the place in the row."""

    group: jax.Array
    branch: jax.Array
    index: jax.Array


class Visits(NamedTuple):
    """The key blocks that each query block looks at; query blocks with most visits come first.

    queries: int32 [C, lanes], query blocks of a chunk; keys: int32 [C, lanes, key blocks], the visits of each, of which
    the first `counts` [C, lanes] are real.
    """

    queries: jax.Array
    keys: jax.Array
    counts: jax.Array


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
    if kind == "dense" or (kind == "auto" and group.shape[1] <= _DENSE_UP_TO):
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
    counts = seen.sum(-1, dtype=jnp.int32).reshape(-1)
    blocks = jnp.argsort(~seen, axis=-1, stable=True) + nk * jnp.arange(rows)[:, None, None]
    blocks = blocks.reshape(rows * nq, nk).astype(jnp.int32)
    # A chunk takes as long as its longest member, so blocks of like counts go together.
    order = jnp.argsort(-counts, stable=True).astype(jnp.int32)
    padding = -len(order) % _LANES
    real = jnp.arange(len(order) + padding) < len(order)
    order = jnp.pad(order, (0, padding))
    counts = jnp.where(real, counts[order], 0)
    chunks = lambda x: x.reshape(-1, _LANES, *x.shape[1:])
    return Visits(chunks(order), chunks(blocks[order]), chunks(counts))


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


class _Blocks(NamedTuple):
    """Arguments cut into blocks; q is scaled by 1 / sqrt(P) already."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    queries: Tokens
    keys: Tokens

    @classmethod
    def cut(cls, q, k, v, queries, keys):
        wq, wk, heads = _width(q.shape[1]), _width(k.shape[1]), k.shape[2]
        cut = lambda tokens, width: Tokens(*(a.reshape(-1, width) for a in tokens))
        scaled = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
        return cls(
            _split(scaled, wq, heads), _split(k, wk, heads), _split(v, wk, heads), cut(queries, wq), cut(keys, wk)
        )

    def scores(self, of: jax.Array, at: jax.Array, real: jax.Array) -> jax.Array:
        """Masked scores [lanes, H, G * Wq, Wk] of query blocks `of` with key blocks `at`."""
        scores = _einsum("nhqp,nhkp->nhqk", self.q[of], self.k[at])
        take = lambda tokens, which: Tokens(*(a[which] for a in tokens))
        visible = _visible(take(self.queries, of), take(self.keys, at)) & real[:, None, None]
        groups = scores.shape[2] // visible.shape[1]
        return jnp.where(jnp.tile(visible, (1, groups, 1))[:, None], scores, _HIDDEN)


@jax.custom_vjp
def _blocks(q, k, v, queries: Tokens, keys: Tokens, visits: Visits) -> jax.Array:
    return _forward(q, k, v, queries, keys, visits)[0]


def _forward(q, k, v, queries, keys, visits):
    blocks = _Blocks.cut(q, k, v, queries, keys)
    count, h, m, p = blocks.q.shape

    def chunk(c, carry):
        out, normaliser = carry
        of, visited = visits.queries[c], visits.counts[c]

        def visit(state):
            i, top, total, weighted = state
            at = lax.dynamic_index_in_dim(visits.keys[c], i, 1, keepdims=False)
            scores = blocks.scores(of, at, i < visited)
            new_top = jnp.maximum(top, scores.max(-1))
            weights, shrink = jnp.exp(scores - new_top[..., None]), jnp.exp(top - new_top)
            add = _einsum("nhqk,nhkp->nhqp", weights.astype(v.dtype), blocks.v[at])
            return i + 1, new_top, total * shrink + weights.sum(-1), weighted * shrink[..., None] + add

        zero = jnp.zeros((_LANES, h, m))
        start = (0, zero + _HIDDEN, zero, jnp.zeros((_LANES, h, m, p)))
        _, top, total, weighted = lax.while_loop(lambda state: state[0] < visited.max(), visit, start)
        total = jnp.maximum(total, 1e-30)
        place = jnp.where(visited > 0, of, count)  # beyond the end: dropped
        out = out.at[place].set((weighted / total[..., None]).astype(q.dtype), mode="drop")
        return out, normaliser.at[place].set(top + jnp.log(total), mode="drop")

    start = (jnp.zeros_like(blocks.q), jnp.zeros((count, h, m)))
    out, normaliser = lax.fori_loop(0, len(visits.queries), chunk, start)
    out = _join(out, q.shape)
    return out, (q, k, v, queries, keys, visits, out, normaliser)


def _backward(saved, d_out):
    q, k, v, queries, keys, visits, out, normaliser = saved
    blocks = _Blocks.cut(q, k, v, queries, keys)
    count, h = blocks.q.shape[:2]
    width = _width(q.shape[1])
    d_out_blocks = _split(d_out, width, h)
    # Σ_j weight_ij dweight_ij = Σ_p out dout
    inner = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    inner = _split(inner, width, h)[..., 0]

    def chunk(c, carry):
        dq, dk, dv = carry
        of, visited = visits.queries[c], visits.counts[c]
        d_out_c, inner_c, normaliser_c, q_c = d_out_blocks[of], inner[of], normaliser[of], blocks.q[of]

        def visit(state):
            i, dq_c, dk, dv = state
            at = lax.dynamic_index_in_dim(visits.keys[c], i, 1, keepdims=False)
            scores = blocks.scores(of, at, i < visited)
            weights = jnp.where(scores > _HIDDEN / 2, jnp.exp(scores - normaliser_c[..., None]), 0.0)
            d_weights = _einsum("nhqp,nhkp->nhqk", d_out_c, blocks.v[at])
            d_scores = (weights * (d_weights - inner_c[..., None])).astype(q.dtype)
            dk = dk.at[at].add(_einsum("nhqk,nhqp->nhkp", d_scores, q_c))
            dv = dv.at[at].add(_einsum("nhqk,nhqp->nhkp", weights.astype(q.dtype), d_out_c))
            return i + 1, dq_c + _einsum("nhqk,nhkp->nhqp", d_scores, blocks.k[at]), dk, dv

        start = (0, jnp.zeros(q_c.shape, jnp.float32), dk, dv)
        _, dq_c, dk, dv = lax.while_loop(lambda state: state[0] < visited.max(), visit, start)
        place = jnp.where(visited > 0, of, count)
        return dq.at[place].set(dq_c, mode="drop"), dk, dv

    zeros = (jnp.zeros(x.shape, jnp.float32) for x in (blocks.q, blocks.k, blocks.v))
    dq, dk, dv = lax.fori_loop(0, len(visits.queries), chunk, tuple(zeros))
    dq = _join(dq * q.shape[-1] ** -0.5, q.shape).astype(q.dtype)
    return dq, _join(dk, k.shape).astype(k.dtype), _join(dv, v.shape).astype(v.dtype), None, None, None


_blocks.defvjp(_forward, _backward)
