"""The kernel `triton`: block-sparse flash attention for GPUs, written with Pallas (Dao 2023, arXiv 2307.08691).

The key blocks that each query block has to visit, and the query blocks of each key block, are listed once per batch:
first those that are visible as a whole, which need no mask, then the partially visible ones. Other groups and branches
cost nothing, and no scores are stored. On CPU the kernel runs in Pallas's interpreter, for tests.

Axis letters: B rows, T tokens (S as keys), N query heads, H key/value heads, G = N / H, P head dimension (a power of
two inside the kernels).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
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
    per_device,
    save_for_backward,
    visible,
)
from rmjax.models.attention.visits import Visits, list_visits
from rmjax.models.sharding import mesh_platform

_SMALLEST_BLOCK = 16  # tokens; tensor cores multiply no smaller blocks
_LISTS = PartitionSpec(ROWS, "sequence", None)  # a device lists the blocks of its shard of the queries
_LOG2E = math.log2(math.e)


class _Pass(NamedTuple):
    """Block sizes in tokens and launch parameters of one kernel."""

    outer: int  # of the block that a program owns: queries, or keys for `_BACKWARD_KEYS`
    inner: int  # of the blocks that it visits
    warps: int
    stages: int


_FORWARD = _Pass(64, 64, 4, 2)
_BACKWARD_QUERIES = _Pass(64, 64, 4, 2)
_BACKWARD_KEYS = _Pass(64, 64, 4, 2)


class Prepared(NamedTuple):
    """The lists of the three kernels."""

    forward: Visits
    queries: Visits
    keys: Visits


def _prepare(tokens: Tokens, window: int) -> Prepared:
    tokens = Tokens(*map(_pad_tokens, tokens))
    list_visits = functools.partial(_list_visits, window=window)
    return per_device(list_visits, (QUERY_TOKENS, KEY_TOKENS), _LISTS)(tokens, tokens)


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, tokens: Tokens, prepared: Prepared, options: Options
) -> jax.Array:
    length, tokens = q.shape[1], Tokens(*map(_pad_tokens, tokens))
    specs = (QUERY, KEY, KEY, QUERY_TOKENS, KEY_TOKENS, _LISTS)
    flash = per_device(lambda *arrays: _flash(options, *arrays), specs, QUERY)
    return flash(*map(_pad_tokens, (q, k, v)), tokens, tokens, prepared)[:, :length]


TRITON = Kernel(_prepare, _attend)


def _list_visits(queries: Tokens, keys: Tokens, window: int) -> Prepared:
    mask = visible(queries, keys, window)
    passes = ((mask, _FORWARD), (mask, _BACKWARD_QUERIES), (mask.mT, _BACKWARD_KEYS))
    return Prepared(*(list_visits(mask, sizes.outer, sizes.inner) for mask, sizes in passes))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    # Without it, float32 operands would be rounded to TF32.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _mask(query: Any, key: Any, window: int) -> jax.Array:
    """Returns the mask [queries, keys]; see `visible`. `query`, `key`: results of `_ids` for the tokens."""
    (query_id, query_offset, *query_position), (key_id, key_offset, *key_position) = query, key
    same = (key_id[None, :] == query_id[:, None]) | (key_id[None, :] == (query_id[:, None] & -65536))
    seen = same & (key_id[None, :] > 0) & (key_offset[None, :] <= query_offset[:, None])
    return seen & (query_position[0][:, None] - key_position[0][None, :] < window) if window else seen


def _scores(q: jax.Array, k: jax.Array, options: Options) -> tuple[jax.Array, jax.Array | None]:
    """Returns the scores in units of ln 2, and their derivative by the scaled products; None: 1."""
    products = _dot(q, k.T)
    if not options.softcap:
        return products * (options.scale * _LOG2E), None
    tanh = jnp.tanh(products * (options.scale / options.softcap))
    return tanh * (options.softcap * _LOG2E), 1 - tanh * tanh


def _visit_all(blocks_ref, counts_ref, body, carry, repeat: int = 1):
    """Returns the last carry of `carry = body(partial, block, n, carry)` over the listed blocks, n < `repeat` each."""
    whole, listed = counts_ref[0], counts_ref[1]

    def run(partial: bool):
        # `lax`: the operators of `jnp` broadcast a constant in a way that the compiler does not support.
        times = jnp.int32(repeat)
        return lambda i, carry: body(partial, blocks_ref[lax.div(i, times)], lax.rem(i, times), carry)

    carry = lax.fori_loop(0, whole * repeat, run(False), carry)
    return lax.fori_loop(whole * repeat, listed * repeat, run(True), carry)


def _forward_kernel(q_ref, k_ref, v_ref, id_refs, blocks_ref, counts_ref, out_ref, lse_ref, *, size, options):
    q = q_ref[...]
    query = tuple(ref[...] for ref in id_refs[0])

    def body(partial, block, _, carry):
        maximum, denominator, numerator = carry
        at = pl.ds(block * size, size)
        scores, _ = _scores(q, k_ref[at, :], options)
        if partial:
            mask = _mask(query, tuple(ref[at] for ref in id_refs[1]), options.window)
            scores = jnp.where(mask, scores, MASKED)
        new_maximum = jnp.maximum(maximum, scores.max(-1))
        weights = jnp.exp2(scores - new_maximum[:, None])
        if partial:
            weights = jnp.where(mask, weights, 0.0)
        rescale = jnp.exp2(maximum - new_maximum)
        v = v_ref[at, :]
        numerator = numerator * rescale[:, None] + _dot(weights.astype(v.dtype), v)
        return new_maximum, denominator * rescale + weights.sum(-1), numerator

    zeros = jnp.zeros(q.shape[0], jnp.float32)
    carry = zeros + MASKED, zeros, jnp.zeros(q.shape, jnp.float32)
    maximum, denominator, numerator = _visit_all(blocks_ref, counts_ref, body, carry)
    denominator = jnp.maximum(denominator, 1e-30)
    out_ref[...] = (numerator / denominator[:, None]).astype(out_ref.dtype)
    lse_ref[...] = maximum + jnp.log2(denominator)


def _weights(q, k, do, v, lse, inner, options: Options, partial: bool, query, key) -> tuple[jax.Array, jax.Array]:
    """Returns the weights of a block pair, and the gradient by its scaled products; [queries, keys] each."""
    scores, slope = _scores(q, k, options)
    weights = jnp.exp2(scores - lse[:, None])
    weights = jnp.where(_mask(query, key, options.window), weights, 0.0) if partial else weights
    d_scores = weights * (_dot(do, v.T) - inner[:, None])
    return weights, d_scores if slope is None else d_scores * slope


def _backward_queries_kernel(
    q_ref, k_ref, v_ref, do_ref, lse_ref, inner_ref, id_refs, blocks_ref, counts_ref, dq_ref, *, size, options
):
    q, do, lse, inner = q_ref[...], do_ref[...], lse_ref[...], inner_ref[...]
    query = tuple(ref[...] for ref in id_refs[0])

    def body(partial, block, _, dq):
        at = pl.ds(block * size, size)
        k = k_ref[at, :]
        key = tuple(ref[at] for ref in id_refs[1]) if partial else None
        _, d_scores = _weights(q, k, do, v_ref[at, :], lse, inner, options, partial, query, key)
        return dq + _dot(d_scores.astype(k.dtype), k)

    dq = _visit_all(blocks_ref, counts_ref, body, jnp.zeros(q.shape, jnp.float32))
    dq_ref[...] = (dq * options.scale).astype(dq_ref.dtype)


def _backward_keys_kernel(
    q_ref, k_ref, v_ref, do_ref, lse_ref, inner_ref, id_refs, blocks_ref, counts_ref, dk_ref, dv_ref, *, size, options
):
    k, v = k_ref[...], v_ref[...]
    key = tuple(ref[...] for ref in id_refs[1])

    def body(partial, block, head, carry):
        dk, dv = carry
        at = pl.ds(block * size, size)
        q, do = q_ref[at, head, :], do_ref[at, head, :]
        query = tuple(ref[at] for ref in id_refs[0]) if partial else None
        lse, inner = lse_ref[head, at], inner_ref[head, at]
        weights, d_scores = _weights(q, k, do, v, lse, inner, options, partial, query, key)
        dv = dv + _dot(weights.astype(do.dtype).T, do)
        return dk + _dot(d_scores.astype(q.dtype).T, q), dv

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = _visit_all(blocks_ref, counts_ref, body, (zeros, zeros), repeat=q_ref.shape[1])
    dk_ref[...] = (dk * options.scale).astype(dk_ref.dtype)
    dv_ref[...] = dv.astype(dv_ref.dtype)


def _call(kernel, name, sizes: _Pass, inner: int, visits: Visits, heads: int, options: Options, **arguments) -> Any:
    """Runs a kernel on the grid (outer blocks, heads, B), with the list of each outer block as its last inputs."""
    rows, blocks, listed = visits.blocks.shape
    visit_specs = [pl.BlockSpec((None, None, size), lambda i, h, b: (b, i, 0)) for size in (listed, 2)]
    function = pl.pallas_call(
        functools.partial(kernel, size=math.gcd(inner, sizes.inner), options=options),
        grid=(blocks, heads, rows),
        in_specs=[*arguments["in_specs"], *visit_specs],
        out_specs=arguments["out_specs"],
        out_shape=arguments["out_shape"],
        compiler_params=plgpu.CompilerParams(num_warps=sizes.warps, num_stages=sizes.stages),
        interpret=mesh_platform() == "cpu",
        name=f"tree_attention_{name}",
    )
    return function(*arguments["inputs"], visits.blocks, visits.counts)


def _all_tokens(length: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, length), lambda i, h, b: (b, 0))


def _token_block(size: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, size), lambda i, h, b: (b, i))


def _query_specs(size: int, length: int, head_dim: int, group: int, num_ids: int) -> tuple[Any, ...]:
    """Returns the specs of a program that owns `size` queries and visits `length` keys.

    They are those of queries, of keys, of a number per query, and of the `num_ids` arrays of `_ids` for both.
    """
    query = pl.BlockSpec((None, size, None, head_dim), lambda i, h, b: (b, i, h, 0))
    key = pl.BlockSpec((None, length, None, head_dim), lambda i, h, b: (b, 0, h // group, 0))
    statistic = pl.BlockSpec((None, None, size), lambda i, h, b: (b, h, i))
    return query, key, statistic, ((_token_block(size),) * num_ids, (_all_tokens(length),) * num_ids)


def _ids(tokens: Tokens, window: int) -> tuple[jax.Array, ...]:
    """Returns what determines the mask: group << 16 | branch, the offset and, if there is a window, the position."""
    ids = (tokens.group << 16) | tokens.branch, tokens.offset
    return (*ids, tokens.position) if window else ids


def _pad_tokens(x: jax.Array) -> jax.Array:
    """Pads the tokens [B, T, ...] with zeros (group 0: padding) to a multiple of the smallest block."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % _SMALLEST_BLOCK), *[(0, 0)] * (x.ndim - 2)])


def _pad_heads(x: jax.Array) -> jax.Array:
    """Pads the head dimension with zeros to a power of two, at least 16."""
    head_dim = x.shape[-1]
    return jnp.pad(x, [(0, 0)] * 3 + [(0, max(16, pl.next_power_of_2(head_dim)) - head_dim)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(options: Options, q, k, v, queries: Tokens, keys: Tokens, prepared: Prepared) -> jax.Array:
    return _forward(options, q, k, v, queries, keys, prepared)[0]


def _forward(options, q, k, v, queries, keys, prepared):
    rows, t, heads, head_dim = q.shape
    padded, s, kv_heads = _pad_heads(q), k.shape[1], k.shape[2]
    size, group, p = math.gcd(t, _FORWARD.outer), heads // kv_heads, padded.shape[-1]
    ids = _ids(queries, options.window), _ids(keys, options.window)
    query, key, statistic, token_specs = _query_specs(size, s, p, group, len(ids[0]))
    run = functools.partial(_call, _forward_kernel, "forward", _FORWARD, s, prepared.forward, heads, options)
    out, lse = run(
        inputs=(padded, _pad_heads(k), _pad_heads(v), ids),
        in_specs=[query, key, key, token_specs],
        out_specs=[query, statistic],
        out_shape=[jax.ShapeDtypeStruct(padded.shape, q.dtype), jax.ShapeDtypeStruct((rows, heads, t), jnp.float32)],
    )
    out = save_for_backward(out[..., :head_dim])
    return out, (q, k, v, queries, keys, prepared, out, save_for_backward(lse))


def _backward(options, residuals, d_out):
    q, k, v, queries, keys, prepared, out, lse = residuals
    rows, t, heads, head_dim = q.shape
    s, kv_heads = k.shape[1:3]
    group = heads // kv_heads
    # Σ_j weight_ij dweight_ij = Σ_p out_ip dout_ip
    inner = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1).transpose(0, 2, 1)  # [B, N, T]
    qp, kp, vp, do = (_pad_heads(x) for x in (q, k, v, d_out.astype(q.dtype)))
    p, ids = qp.shape[-1], (_ids(queries, options.window), _ids(keys, options.window))

    size = math.gcd(t, _BACKWARD_QUERIES.outer)
    query, key, statistic, token_specs = _query_specs(size, s, p, group, len(ids[0]))
    run = functools.partial(
        _call, _backward_queries_kernel, "dq", _BACKWARD_QUERIES, s, prepared.queries, heads, options
    )
    dq = run(
        inputs=(qp, kp, vp, do, lse, inner, ids),
        in_specs=[query, key, key, query, statistic, statistic, token_specs],
        out_specs=query,
        out_shape=jax.ShapeDtypeStruct(qp.shape, q.dtype),
    )

    size = math.gcd(s, _BACKWARD_KEYS.outer)
    grouped = lambda x: x.reshape(rows, t, kv_heads, group, p)
    query = pl.BlockSpec((None, t, None, group, p), lambda i, h, b: (b, 0, h, 0, 0))
    key = pl.BlockSpec((None, size, None, p), lambda i, h, b: (b, i, h, 0))
    statistic = pl.BlockSpec((None, None, group, t), lambda i, h, b: (b, h, 0, 0))
    token_specs = (_all_tokens(t),) * len(ids[0]), (_token_block(size),) * len(ids[0])
    statistics = (x.reshape(rows, kv_heads, group, t) for x in (lse, inner))
    run = functools.partial(_call, _backward_keys_kernel, "dkv", _BACKWARD_KEYS, t, prepared.keys, kv_heads, options)
    dk, dv = run(
        inputs=(grouped(qp), kp, vp, grouped(do), *statistics, ids),
        in_specs=[query, key, key, query, statistic, statistic, token_specs],
        out_specs=[key, key],
        out_shape=[jax.ShapeDtypeStruct(kp.shape, k.dtype), jax.ShapeDtypeStruct(vp.shape, v.dtype)],
    )
    return dq[..., :head_dim], dk[..., :head_dim], dv[..., :head_dim], None, None, None


_flash.defvjp(_forward, _backward)
