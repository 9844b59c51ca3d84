"""The kernel `mosaic`: block-sparse flash attention for TPUs, written with Pallas (Dao 2023, arXiv 2307.08691).

It visits the listed pairs of a query block and a key block, over all rows; see `pairs`. Pairs that are visible as a
whole need no mask. Scores are transposed, [keys, queries], so that what belongs to a query (maximum, sum, ids) lies
along the lanes of a register. On CPU the kernel runs in Pallas's interpreter, for tests.

Axis letters: B rows, T tokens (S as keys), N query heads, H key/value heads, G = N / H, P head dimension.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rmjax.models.attention.mask import KEY, MASKED, QUERY, Kernel, Options, Tokens, per_device, save_for_backward
from rmjax.models.attention.pairs import (
    FIRST,
    LAST,
    PARTIAL,
    PREPARED,
    SUBLANES,
    Prepared,
    block_sizes,
    key_block,
    pad_tokens,
    prepare,
    query_block,
)
from rmjax.models.sharding import mesh_platform

_TRANSPOSED = (((1,), (1,)), ((), ()))  # dimension numbers of a · bᵀ, a · b and aᵀ · b
_PLAIN = (((1,), (0,)), ((), ()))
_FIRST_TRANSPOSED = (((0,), (0,)), ((), ()))


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, _: Tokens, prepared: Prepared, options: Options) -> jax.Array:
    flash = per_device(lambda *arrays: _flash(options, *arrays), (QUERY, KEY, KEY, PREPARED), QUERY)
    return flash(*map(pad_tokens, (q, k, v)), prepared)[:, : q.shape[1]]


MOSAIC = Kernel(prepare, _attend)


def _dot(a: jax.Array, b: jax.Array, dimensions: Any) -> jax.Array:
    # By default, float32 operands would be rounded to bfloat16.
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _mask(queries: jax.Array, keys: jax.Array, window: int) -> jax.Array:
    """Returns the mask [keys, queries] of blocks of `Prepared.queries` [8, queries] and `Prepared.keys` [8, keys]."""
    keys = keys.T
    seen = (keys[:, :1] == queries[:1]) | (keys[:, :1] == queries[1:2])
    seen &= keys[:, 1:2] <= queries[2:3]
    return seen & (queries[3:4] - keys[:, 2:3] < window) if window else seen


def _scores(q: jax.Array, k: jax.Array, options: Options) -> tuple[jax.Array, jax.Array | None]:
    """Returns the scores [keys, queries], and their derivative by the scaled products; None: 1."""
    products = _dot(k, q, _TRANSPOSED)
    if not options.softcap:
        return products * options.scale, None
    tanh = jnp.tanh(products * (options.scale / options.softcap))
    return tanh * options.softcap, 1 - tanh * tanh


def _visit(pairs_ref, start: Callable[[], None], visit: Callable[[bool], None], end: Callable[[], None]) -> None:
    """Visits the pair of a program; `start` precedes the first pair of an output block, `end` follows the last."""
    flags = pairs_ref[pl.program_id(1)]
    pl.when(flags & FIRST != 0)(start)
    pl.when(flags & PARTIAL != 0)(lambda: visit(True))
    pl.when(flags & PARTIAL == 0)(lambda: visit(False))
    pl.when(flags & LAST != 0)(end)


def _forward_kernel(
    pairs_ref, queries_ref, keys_ref, q_ref, k_ref, v_ref, out_ref, lse_ref, maximum, total, sums, *, options
):
    group = q_ref.shape[0]

    def start():
        maximum[...] = jnp.full_like(maximum, MASKED)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    def visit(partial):
        mask = _mask(queries_ref[...], keys_ref[...], options.window) if partial else None
        k, v = k_ref[...], v_ref[...]
        for head in range(group):
            row = pl.ds(head, 1)
            scores, _ = _scores(q_ref[head], k, options)
            scores = scores if mask is None else jnp.where(mask, scores, MASKED)
            before = maximum[row, :]
            after = jnp.maximum(before, scores.max(0, keepdims=True))
            weights = jnp.exp(scores - after)
            weights = weights if mask is None else jnp.where(mask, weights, 0.0)
            rescale = jnp.exp(before - after)
            maximum[row, :] = after
            total[row, :] = total[row, :] * rescale + weights.sum(0, keepdims=True)
            sums[head] = sums[head] * rescale + _dot(v, weights.astype(v.dtype), _FIRST_TRANSPOSED)  # [P, queries]

    def end():
        denominator = jnp.maximum(total[:group, :], 1e-30)
        lse_ref[...] = maximum[:group, :] + jnp.log(denominator)
        for head in range(group):
            out_ref[head] = (sums[head] / denominator[head : head + 1, :]).T.astype(out_ref.dtype)

    _visit(pairs_ref, start, visit, end)


def _weights(head, operands, mask, options) -> tuple[jax.Array, jax.Array]:
    """Returns the weights of a pair, and the gradient by its scaled products; float32 [keys, queries] each."""
    q_ref, k_ref, v_ref, do_ref, lse_ref, inner_ref = operands
    row = pl.ds(head, 1)
    scores, slope = _scores(q_ref[head], k_ref[...], options)
    weights = jnp.exp(scores - lse_ref[row, :])
    weights = weights if mask is None else jnp.where(mask, weights, 0.0)
    d_scores = weights * (_dot(v_ref[...], do_ref[head], _TRANSPOSED) - inner_ref[row, :])
    return weights, d_scores if slope is None else d_scores * slope


def _queries_kernel(
    pairs_ref, queries_ref, keys_ref, q_ref, k_ref, v_ref, do_ref, lse_ref, inner_ref, dq_ref, sums, *, options
):
    operands = q_ref, k_ref, v_ref, do_ref, lse_ref, inner_ref

    def start():
        sums[...] = jnp.zeros_like(sums)

    def visit(partial):
        mask = _mask(queries_ref[...], keys_ref[...], options.window) if partial else None
        for head in range(dq_ref.shape[0]):
            _, d_scores = _weights(head, operands, mask, options)
            sums[head] += _dot(d_scores.astype(k_ref.dtype), k_ref[...], _FIRST_TRANSPOSED)  # [queries, P]

    def end():
        dq_ref[...] = (sums[...] * options.scale).astype(dq_ref.dtype)

    _visit(pairs_ref, start, visit, end)


def _keys_kernel(
    pairs_ref,
    queries_ref,
    keys_ref,
    q,
    k_ref,
    v_ref,
    do,
    lse_ref,
    inner_ref,
    dk_ref,
    dv_ref,
    dk_sums,
    dv_sums,
    *,
    options,
):
    operands = q, k_ref, v_ref, do, lse_ref, inner_ref

    def start():
        dk_sums[...], dv_sums[...] = jnp.zeros_like(dk_sums), jnp.zeros_like(dv_sums)

    def visit(partial):
        mask = _mask(queries_ref[...], keys_ref[...], options.window) if partial else None
        for head in range(q.shape[0]):
            weights, d_scores = _weights(head, operands, mask, options)
            dv_sums[...] += _dot(weights.astype(do.dtype), do[head], _PLAIN)
            dk_sums[...] += _dot(d_scores.astype(q.dtype), q[head], _PLAIN)

    def end():
        dk_ref[...] = (dk_sums[...] * options.scale).astype(dk_ref.dtype)
        dv_ref[...] = dv_sums[...].astype(dv_ref.dtype)

    _visit(pairs_ref, start, visit, end)


def _call(
    kernel: Callable[..., None],
    name: str,
    sizes: tuple[int, int],
    pairs: jax.Array,
    count: jax.Array,
    prepared: Prepared,
    inputs: Sequence[tuple[str, jax.Array]],
    outputs: Sequence[tuple[str, jax.ShapeDtypeStruct]],
    scratch: Sequence[tuple[int, ...]],
    products: int,
    options: Options,
) -> Any:
    """Runs a kernel on the grid (H, listed pairs).

    Args:
      sizes: of the query blocks and the key blocks, in tokens.
      inputs, outputs: with their kinds: query [H, G, B·T, P], key [H, B·S, P], or number per query [H, G, B·T].
      scratch: shapes of the float32 sums.
      products: number of matrix products per pair and query head.
    """
    (size, key_size), (heads, group, _, head_dim) = sizes, inputs[0][1].shape
    specs = {
        "query": pl.BlockSpec((None, group, size, head_dim), lambda h, i, pairs: (h, 0, query_block(pairs[i]), 0)),
        "key": pl.BlockSpec((None, key_size, head_dim), lambda h, i, pairs: (h, key_block(pairs[i]), 0)),
        "number": pl.BlockSpec((None, group, size), lambda h, i, pairs: (h, 0, query_block(pairs[i]))),
    }
    token_specs = [
        pl.BlockSpec((SUBLANES, size), lambda h, i, pairs: (0, query_block(pairs[i]))),
        pl.BlockSpec((SUBLANES, key_size), lambda h, i, pairs: (0, key_block(pairs[i]))),
    ]
    arrays: list[Any] = [x for _, x in (*inputs, *outputs)]
    visited = heads * group * size * key_size * pairs.size // 2  # scores; at most half of them precede their query
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(heads, count),
        in_specs=[*token_specs, *(specs[kind] for kind, _ in inputs)],
        out_specs=[specs[kind] for kind, _ in outputs],
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
    )
    function = pl.pallas_call(
        functools.partial(kernel, options=options),
        out_shape=[shape for _, shape in outputs],
        grid_spec=grid,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * head_dim * visited,
            transcendentals=visited,
            bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays),
        ),
        interpret=mesh_platform() == "cpu",
        name=f"tree_attention_{name}",
    )
    return function(pairs, prepared.queries, prepared.keys, *(x for _, x in inputs))


def _by_head(x: jax.Array, heads: int) -> jax.Array:
    """[B, T, N, P] -> [H, G, B·T, P]."""
    rows, t, count, head_dim = x.shape
    return x.reshape(rows * t, heads, count // heads, head_dim).transpose(1, 2, 0, 3)


def _by_token(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[H, G, B·T, P] -> `shape`, [B, T, N, P]."""
    return x.transpose(2, 0, 1, 3).reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(options: Options, q: jax.Array, k: jax.Array, v: jax.Array, prepared: Prepared) -> jax.Array:
    return _forward(options, q, k, v, prepared)[0]


def _forward(options, q, k, v, prepared):
    heads, sizes = k.shape[2], block_sizes(q.shape[1], k.shape[1])
    queries, keys, values = _by_head(q, heads), _by_head(k, heads)[:, 0], _by_head(v, heads)[:, 0]
    _, group, _, head_dim = queries.shape
    statistic = (-(-group // SUBLANES) * SUBLANES, sizes[0])
    out, lse = _call(
        _forward_kernel,
        "forward",
        sizes,
        prepared.by_query,
        prepared.counts[0],
        prepared,
        [("query", queries), ("key", keys), ("key", values)],
        [
            ("query", jax.ShapeDtypeStruct(queries.shape, q.dtype)),
            ("number", jax.ShapeDtypeStruct(queries.shape[:3], jnp.float32)),
        ],
        [statistic, statistic, (group, head_dim, sizes[0])],
        2,
        options,
    )
    out, lse = save_for_backward(_by_token(out, q.shape)), save_for_backward(lse)
    return out, (q, k, v, prepared, out, lse)


def _backward(options, residuals, d_out):
    q, k, v, prepared, out, lse = residuals
    heads, sizes = k.shape[2], block_sizes(q.shape[1], k.shape[1])
    queries, keys, values = _by_head(q, heads), _by_head(k, heads)[:, 0], _by_head(v, heads)[:, 0]
    # Σ_j weight_ij dweight_ij = Σ_p out_ip dout_ip
    inner = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    inputs = [("query", queries), ("key", keys), ("key", values), ("query", _by_head(d_out.astype(q.dtype), heads))]
    inputs += [("number", lse), ("number", _by_head(inner, heads)[..., 0])]
    _, group, _, head_dim = queries.shape
    like = lambda kind, x: (kind, jax.ShapeDtypeStruct(x.shape, x.dtype))

    def run(kernel, name, pairs, count, outputs, sums, products):
        return _call(kernel, name, sizes, pairs, count, prepared, inputs, outputs, sums, products, options)

    outputs, sums = [like("query", queries)], [(group, sizes[0], head_dim)]
    (dq,) = run(_queries_kernel, "dq", prepared.by_query, prepared.counts[0], outputs, sums, 3)
    outputs = [like("key", keys), like("key", values)]
    dk, dv = run(_keys_kernel, "dkv", prepared.by_key, prepared.counts[1], outputs, [(sizes[1], head_dim)] * 2, 4)
    return _by_token(dq, q.shape), _by_token(dk[:, None], k.shape), _by_token(dv[:, None], v.shape), None


_flash.defvjp(_forward, _backward)
