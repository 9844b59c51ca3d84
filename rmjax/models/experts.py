"""Mixtures of experts: each token is computed by the few MLPs, of many, that a router chooses for it.

The assignments of tokens to experts are sorted by expert, and each expert multiplies its own rows: no token is dropped,
and tokens do not affect one another. Axis letters: B rows, T tokens, D model, F MLP of an expert, E experts, K experts
of a token, M tokens of a device, R = M · K assignments, followed by rows that fill the last block.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P

from rmjax.core.mesh import ROWS
from rmjax.models import int8
from rmjax.models.architecture import DecoderConfig
from rmjax.models.attention import save_for_backward
from rmjax.models.attention.mask import per_device
from rmjax.models.layers import ACTIVATION, MLP, Linear
from rmjax.models.sharding import mesh_platform

_SHARDS = "tensor"  # the mesh axis over which experts are split
_BLOCK = {"cpu": 64, "gpu": 256}  # rows of one product; TPUs have none


class Experts(nnx.Module):
    """One matrix for each expert.

    Attributes:
      kernel: [E, inputs, outputs], or int8 matrices of `rmjax.models.int8`.
    """

    def __init__(self, shape: tuple[int, int, int], std: float, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape, param_dtype))


class ExpertMLPs(nnx.Module):
    """The matrices of all experts' gated MLPs."""

    def __init__(self, config: DecoderConfig, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        inputs, hidden = config.hidden_size, config.expert_size or config.intermediate_size
        make = functools.partial(Experts, std=config.initializer_range, param_dtype=param_dtype, rngs=rngs)
        self.gate = make((config.num_experts, inputs, hidden))
        self.up = make((config.num_experts, inputs, hidden))
        self.down = make((config.num_experts, hidden, inputs))


class RoutedMLP(nnx.Module):
    """y = Σ_e p_e · MLP_e(x) over the K experts with the greatest p = softmax(x · router); used in place of `MLP`.

    Shazeer et al. 2017, arXiv 1701.06538; with `normalize_experts`, the K p_e are divided by their sum (Mixtral, arXiv
    2401.04088). With a shared expert, sigmoid(x · w) · MLP(x) is added (Qwen 2, arXiv 2407.10671). The router computes
    in float32.
    """

    def __init__(self, config: DecoderConfig, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        linear = functools.partial(Linear, bias=False, std=config.initializer_range, param_dtype=param_dtype, rngs=rngs)
        self.router = linear(config.hidden_size, config.num_experts)
        self.experts = ExpertMLPs(config, param_dtype, rngs)
        shared = config.shared_expert_size
        self.shared = MLP(config, param_dtype, rngs, shared) if shared else None
        self.shared_weight = linear(config.hidden_size, 1) if shared else None
        self.config = config

    def __call__(self, x: jax.Array) -> jax.Array:
        config, experts = self.config, self.experts
        logits = save_for_backward(_float32_dot(x, self.router.kernel[...]))
        weights, chosen = lax.top_k(jax.nn.softmax(logits), config.experts_per_token)
        if config.normalize_experts:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        tokens, kernels = P(ROWS, "sequence", None), P(_SHARDS, None, None)
        compute = functools.partial(_compute, activation=ACTIVATION[config.activation], num_experts=config.num_experts)
        gate = experts.gate
        assert gate is not None  # all these families have one
        y = per_device(compute, (tokens,) * 3 + (kernels,) * 3, tokens)(
            x, weights, chosen, *(part.kernel.get_value() for part in (gate, experts.up, experts.down))
        )
        if self.shared is None or self.shared_weight is None:
            return y
        weight = jax.nn.sigmoid(_float32_dot(x, self.shared_weight.kernel[...]))
        return (y.astype(jnp.float32) + weight * self.shared(x)).astype(x.dtype)


def _float32_dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    # Highest precision: on TPU the default would round the float32 operands to bfloat16.
    return jnp.matmul(x.astype(jnp.float32), kernel.astype(jnp.float32), precision=lax.Precision.HIGHEST)


class _Groups(NamedTuple):
    """Assignments of tokens to the experts of a device, sorted by expert; those to other experts come last."""

    order: jax.Array  # int32 [R + block]: the assignment in each sorted row; rows from R on fill the last block
    place: jax.Array  # int32 [R]: the sorted row of each assignment
    held: jax.Array  # bool [R]: whether an assignment is to an expert of the device
    sizes: jax.Array  # int32 [E of the device]: the number of assignments of each expert


def _group(expert: jax.Array, num_experts: int, block: int) -> _Groups:
    """Returns the groups of assignments to the experts 0, …, `num_experts` - 1 of the device and to others, int [R]."""
    held = (expert >= 0) & (expert < num_experts)
    expert = jnp.where(held, expert, num_experts)
    order = save_for_backward(jnp.argsort(expert).astype(jnp.int32))
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order), dtype=jnp.int32))
    sizes = jnp.bincount(expert, length=num_experts + 1)[:num_experts].astype(jnp.int32)
    return _Groups(jnp.pad(order, (0, block)), place, held, sizes)


def _compute(
    x: jax.Array, weights: jax.Array, chosen: jax.Array, gate: Any, up: Any, down: Any, *, activation, num_experts: int
) -> jax.Array:
    """Returns the sum over the experts of a token, [B, T, D], of one device's rows.

    Args:
      x: [B, T, D].
      weights: float32 [B, T, K].
      chosen: int32 [B, T, K], indices of experts.
      gate, up, down: the matrices of the device's experts.
      activation: of the MLPs.
      num_experts: E, of all devices.
    """
    block, k = _BLOCK.get(mesh_platform(), 0), chosen.shape[-1]
    local = jax.tree.leaves(gate)[0].shape[0]
    first = lax.axis_index(_SHARDS) * local if local < num_experts else 0
    groups = _group(chosen.reshape(-1) - first, local, block)
    rows = _dispatch(x.reshape(-1, x.shape[-1]), groups, k)
    hidden = activation(save_for_backward(_multiply(rows, gate, groups, block))) * save_for_backward(
        _multiply(rows, up, groups, block)
    )
    # The weights precede the last product, whose result the backward pass then does not need.
    weight = jnp.where(jnp.arange(len(rows)) < jnp.sum(groups.sizes), weights.reshape(-1)[groups.order], 0)
    hidden = (hidden.astype(jnp.float32) * weight[:, None]).astype(x.dtype)
    y = _combine(_multiply(hidden, down, groups, block), groups, k)
    if local < num_experts:
        y = lax.psum(y, _SHARDS)
    return y.astype(x.dtype).reshape(x.shape)


# The transposes of gathers would be scatters, which are slow; those of these permutations are gathers too.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dispatch(x: jax.Array, groups: _Groups, k: int) -> jax.Array:
    """Returns the token of each sorted assignment: [M, D] -> [R + block, D]."""
    return x[groups.order // k]


def _dispatch_forward(x: jax.Array, groups: _Groups, k: int):
    return _dispatch(x, groups, k), groups


def _dispatch_backward(k: int, groups: _Groups, dy: jax.Array):
    return _combine(dy, groups, k).astype(dy.dtype), None


_dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _combine(y: jax.Array, groups: _Groups, k: int) -> jax.Array:
    """Returns the sum over the device's assignments of each token: [R + block, D] -> float32 [M, D]."""
    held = jnp.where(groups.held[:, None], y[groups.place], 0)  # other rows may have any value
    return jnp.sum(held.reshape(-1, k, y.shape[-1]), axis=1, dtype=jnp.float32)


def _combine_forward(y: jax.Array, groups: _Groups, k: int):
    return _combine(y, groups, k), (groups, jnp.zeros((), y.dtype))


def _combine_backward(k: int, residuals, dy: jax.Array):
    groups, like = residuals
    return dy.astype(like.dtype)[groups.order // k], None


_combine.defvjp(_combine_forward, _combine_backward)


def _multiply(x: jax.Array, kernel: Any, groups: _Groups, block: int) -> jax.Array:
    """Returns the products of each expert's rows with its matrix in x's dtype: [R + block, D] -> [R + block, F].

    Rows that belong to no expert have any finite value.
    """
    if not int8.is_matrix(kernel):
        return grouped_dot(x, kernel, groups.sizes, block)
    y = grouped_dot(x, kernel["int8"], groups.sizes, block)
    expert = jnp.searchsorted(jnp.cumsum(groups.sizes), jnp.arange(len(x)), side="right")
    return (y.astype(jnp.float32) * kernel["scale"][:, 0].at[expert].get(mode="clip")).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_dot(x: jax.Array, w: jax.Array, sizes: jax.Array, block: int) -> jax.Array:
    """Returns x · w[e] of each row in x's dtype, accumulated in float32: [R, D] · [E, D, F] -> [R, F].

    w is cast to x's dtype for the product; its gradient has w's dtype. Integers have none.

    Args:
      sizes: int32 [E]: the first sizes[0] rows are of expert 0, the next sizes[1] of expert 1, and so on. The values of
        the rows after them all are undefined.
      block: rows of one product; x has at least so many rows after those of the experts. 0: `jax.lax.ragged_dot`,
        which only TPUs compute as such: for CPU and GPU, XLA multiplies all rows with all matrices (jax 0.10.2).
    """
    if not block:
        return lax.ragged_dot(x, w.astype(x.dtype), sizes, preferred_element_type=jnp.float32).astype(x.dtype)

    def product(expert: jax.Array, start: jax.Array, _: Any, matrix: jax.Array, out: jax.Array) -> jax.Array:
        # The rows of a block after the expert's are computed in vain; the next expert, or nobody, replaces them.
        rows = lax.dynamic_slice_in_dim(x, start, block)
        y = jnp.matmul(rows, matrix, preferred_element_type=jnp.float32).astype(x.dtype)
        return lax.dynamic_update_slice_in_dim(out, y, start, 0)

    def expert(e: jax.Array, out: jax.Array) -> jax.Array:
        matrix = w[e].astype(x.dtype)
        return _for_blocks(sizes, e, block, lambda start, _, out: product(e, start, _, matrix, out), out)

    return lax.fori_loop(0, len(sizes), expert, jnp.zeros((len(x), w.shape[-1]), x.dtype))


def _for_blocks(sizes: jax.Array, e: jax.Array, block: int, body: Any, init: jax.Array) -> jax.Array:
    """Returns `init` after body(first row, number of rows of the expert from there on, value) for its blocks."""
    start = jnp.sum(jnp.where(jnp.arange(len(sizes)) < e, sizes, 0))
    step = lambda i, value: body(start + i * block, sizes[e] - i * block, value)
    return lax.fori_loop(0, (sizes[e] + block - 1) // block, step, init)


def _grouped_forward(x: jax.Array, w: jax.Array, sizes: jax.Array, block: int):
    return grouped_dot(x, w, sizes, block), (x, w, sizes)


def _grouped_backward(block: int, residuals, dy: jax.Array):
    x, w, sizes = residuals
    dx = grouped_dot(dy, jnp.swapaxes(w, 1, 2), sizes, block)
    dw = None if jnp.issubdtype(w.dtype, jnp.integer) else _weight_gradient(x, dy, sizes, block).astype(w.dtype)
    return dx, dw, None


grouped_dot.defvjp(_grouped_forward, _grouped_backward)


def _weight_gradient(x: jax.Array, dy: jax.Array, sizes: jax.Array, block: int) -> jax.Array:
    """Returns xᵀ · dy of each expert's rows, float32 [E, D, F]."""
    if not block:
        contract_rows = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])
        return lax.ragged_dot_general(x, dy, sizes, contract_rows, preferred_element_type=jnp.float32)

    def product(start: jax.Array, count: jax.Array, total: jax.Array) -> jax.Array:
        rows, gradients = (lax.dynamic_slice_in_dim(array, start, block) for array in (x, dy))
        rows = jnp.where(jnp.arange(block)[:, None] < count, rows, 0)
        return total + lax.dot_general(rows, gradients, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

    def expert(e: jax.Array, out: jax.Array) -> jax.Array:
        total = _for_blocks(sizes, e, block, product, jnp.zeros(out.shape[1:], jnp.float32))
        return lax.dynamic_update_index_in_dim(out, total, e, 0)

    shape = (len(sizes), x.shape[-1], dy.shape[-1])
    return lax.fori_loop(0, len(sizes), expert, jnp.zeros(shape, jnp.float32))
