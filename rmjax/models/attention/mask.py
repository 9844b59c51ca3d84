"""The attention mask of packed prefix trees, and what the kernels that apply it share.

Token i attends to token j iff j <= i, group[j] = group[i] != 0, and branch[j] is 0 (the shared prefix) or branch[i].

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
    offset: jax.Array  # of the token in its row


class Kernel(NamedTuple):
    """An implementation of attention."""

    prepare: Callable[[Tokens], Any]  # returns the arrays that all layers share, computed once per batch, or None
    attend: Callable[..., jax.Array]  # attend(q, k, v, tokens, prepared); shapes and dtypes as in `attend` below


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """The mask of a batch, computed once and used by all layers."""

    tokens: Tokens
    prepared: Any  # result of `kernel.prepare`
    kernel: Kernel = dataclasses.field(metadata={"static": True})


def make_mask(group: jax.Array, branch: jax.Array, kernel: Kernel) -> Mask:
    """Returns the mask of packed rows; group, branch: int32 [B, T], as in `rmjax.data.schema.packed_spec`."""
    tokens = Tokens(group, branch, jnp.broadcast_to(jnp.arange(group.shape[1], dtype=jnp.int32), group.shape))
    return Mask(tokens, kernel.prepare(tokens), kernel)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: Mask) -> jax.Array:
    """softmax(q kᵀ / sqrt(P)) v over the tokens that `mask` lets each query attend to.

    Args:
      q: [B, T, N, P].
      k, v: [B, T, H, P]; N is a multiple of H, and query head n uses key/value head n // (N / H).

    Returns:
      [B, T, N, P] in q's dtype; softmax in float32. Values at padding are finite but meaningless.
    """
    return mask.kernel.attend(q, k, v, mask.tokens, mask.prepared)


def visible(queries: Tokens, keys: Tokens) -> jax.Array:
    """Returns the mask as bool [..., queries, keys]."""
    group, branch, offset = ((a[..., :, None], b[..., None, :]) for a, b in zip(queries, keys, strict=True))
    same = (group[0] == group[1]) & (group[0] != 0) & (offset[1] <= offset[0])
    return same & ((branch[1] == 0) | (branch[0] == branch[1]))


def save_for_backward(x: jax.Array) -> jax.Array:
    """Names `x` for `jax.checkpoint`: `remat="small"` stores it for the backward pass instead of recomputing it."""
    return checkpoint_name(x, SAVED)


def per_device(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Returns `function` applied by each device to its shards of the arguments."""
    mesh = jax.sharding.get_abstract_mesh()
    if all(mesh.shape.get(axis, 1) == 1 for axis in AXES):
        return function
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)
