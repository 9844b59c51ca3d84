"""The attention mask of packed prefix trees, and what the kernels that apply it share.

Token i attends to token j iff j <= i, group[j] = group[i] != 0, branch[j] is 0 (the shared prefix) or branch[i], and,
with a window w, position[i] - position[j] < w: the window counts the token itself.

Axis letters: B rows, T tokens, N query heads, H key/value heads, P head dimension.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from rmjax.core.mesh import AXES, ROWS

MASKED = -1e30  # score of a masked pair; finite, so that the softmax over a row of padding is not NaN
SAVED = "saved"  # checkpoint name of the values marked by `save_for_backward`

# Shardings inside kernels: a device has all keys of its rows, and its shard of their queries.
QUERY_TOKENS = PartitionSpec(ROWS, "sequence")
KEY_TOKENS = PartitionSpec(ROWS, None)
QUERY = PartitionSpec(ROWS, "sequence", "tensor", None)
KEY = PartitionSpec(ROWS, None, "tensor", None)

einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class Tokens(NamedTuple):
    """The values of the tokens that determine the mask, int32 [B, T] each."""

    group: jax.Array
    branch: jax.Array
    position: jax.Array  # in its conversation; a branch continues the positions of its prefix
    offset: jax.Array  # of the token in its row


class Options(NamedTuple):
    """What a kernel is compiled for."""

    scale: float  # of the products of queries and keys
    softcap: float  # c: a score s becomes c · tanh(s / c); 0: it stays
    window: int  # tokens, see above; 0: none


class Kernel(NamedTuple):
    """An implementation of attention."""

    # prepare(tokens, window): the arrays that all layers with the window share, computed once per batch, or None
    prepare: Callable[[Tokens, int], Any]
    # attend(q, k, v, tokens, prepared, options); shapes and dtypes as in `attend` below
    attend: Callable[..., jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """The mask of a batch, computed once and used by all layers with the same window."""

    tokens: Tokens
    prepared: Any  # result of `kernel.prepare`
    kernel: Kernel = dataclasses.field(metadata={"static": True})
    window: int = dataclasses.field(metadata={"static": True})


def make_mask(group: jax.Array, branch: jax.Array, position: jax.Array, kernel: Kernel, window: int = 0) -> Mask:
    """Returns the mask of packed rows.

    Args:
      group, branch, position: int32 [B, T], as in `rmjax.data.schema.packed_spec`.
      window: in tokens; 0: none.
    """
    offset = jnp.broadcast_to(jnp.arange(group.shape[1], dtype=jnp.int32), group.shape)
    tokens = Tokens(group, branch, position, offset)
    window = window if window < group.shape[1] else 0  # a conversation lies within a row
    return Mask(tokens, kernel.prepare(tokens, window), kernel, window)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask, scale: float | None = None, softcap: float = 0.0
) -> jax.Array:
    """softmax(scale q kᵀ) v over the tokens that `mask` lets each query attend to.

    Args:
      q: [B, T, N, P].
      k, v: [B, T, H, P]; N is a multiple of H, and query head n uses key/value head n // (N / H).
      scale: None: 1 / sqrt(P).
      softcap: c > 0: each score s becomes c · tanh(s / c) (Gemma 2); 0: none.

    Returns:
      [B, T, N, P] in q's dtype; softmax in float32. Values at padding are finite but meaningless.
    """
    options = Options(q.shape[-1] ** -0.5 if scale is None else scale, softcap, mask.window)
    return mask.kernel.attend(q, k, v, mask.tokens, mask.prepared, options)


def visible(queries: Tokens, keys: Tokens, window: int = 0) -> jax.Array:
    """Returns the mask as bool [..., queries, keys]."""
    group, branch, position, offset = ((a[..., :, None], b[..., None, :]) for a, b in zip(queries, keys, strict=True))
    same = (group[0] == group[1]) & (group[0] != 0) & (offset[1] <= offset[0])
    seen = same & ((branch[1] == 0) | (branch[0] == branch[1]))
    return seen & (position[0] - position[1] < window) if window else seen


def cap(scores: jax.Array, options: Options) -> jax.Array:
    """Returns the scores with the soft cap of `options`, if it has one."""
    return options.softcap * jnp.tanh(scores / options.softcap) if options.softcap else scores


def save_for_backward(x: jax.Array) -> jax.Array:
    """Names `x` for `jax.checkpoint`: `remat="small"` stores it for the backward pass instead of recomputing it."""
    return checkpoint_name(x, SAVED)


def per_device(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Returns `function` applied by each device to its shards of the arguments."""
    mesh = jax.sharding.get_abstract_mesh()
    if all(mesh.shape.get(axis, 1) == 1 for axis in AXES):
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)
