"""What the kernel `mosaic` needs of a mask: the ids of the tokens, and lists of the pairs of blocks that it visits.

A pair of a query block and a key block is listed if it has a visible pair of tokens, once per batch, over all rows of a
device.

Axis letters: B rows, T tokens (S as keys).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rmjax.core.errors import InputError
from rmjax.core.mesh import ROWS
from rmjax.models.attention.mask import KEY_TOKENS, QUERY_TOKENS, Tokens, per_device, visible

SUBLANES = 8  # rows of a register
LANES = 128  # elements of a register's row; blocks are multiples
_QUERIES, _KEYS = 256, 512  # largest blocks, in tokens
FIRST, LAST, PARTIAL = 1, 2, 4  # flags of a pair: the first and the last of its output block; not visible as a whole
_FLAG_BITS, _BLOCK_BITS = 3, 14  # of an int32 that holds a pair: query block, key block, flags
_MOST_PAIRS = 250_000  # of which 4 bytes each fit in the scalar memory (SMEM) of 1 MiB
_TOKEN_AXES = PartitionSpec((*ROWS, "sequence"))


class Prepared(NamedTuple):
    """What the kernels need of the mask, for the tokens of one device; int32."""

    queries: jax.Array  # [8, B·T]: id of the own branch, id of the prefix, offset, position, zeros
    keys: jax.Array  # [8, B·S]: id, offset, position, zeros
    by_query: jax.Array  # [B·T/query block·S/key block]: pairs in the order of their query blocks; the rest is unused
    by_key: jax.Array  # the same in the order of their key blocks
    counts: jax.Array  # [2]: number of pairs in the two lists


# The shardings of `Prepared`.
_SPECS = (PartitionSpec(None, (*ROWS, "sequence")), PartitionSpec(None, ROWS), *(_TOKEN_AXES,) * 3)
PREPARED: Any = Prepared(*_SPECS)  # type: ignore[arg-type]


def prepare(tokens: Tokens, window: int) -> Prepared:
    """Returns what all layers with a window share; see `Kernel`."""
    tokens = Tokens(*map(pad_tokens, tokens))
    list_pairs = functools.partial(_list_pairs, window=window)
    return per_device(list_pairs, (QUERY_TOKENS, KEY_TOKENS), PREPARED)(tokens, tokens)


def _list_pairs(queries: Tokens, keys: Tokens, window: int) -> Prepared:
    (rows, t), s = queries.group.shape, keys.group.shape[1]
    size, key_size = block_sizes(t, s)
    blocks, key_blocks = t // size, s // key_size
    _check_size(rows, blocks, key_blocks, s)
    mask = visible(queries, keys, window).reshape(rows, blocks, size, key_blocks, key_size)
    some, every = mask.any((2, 4)), mask.all((2, 4))
    by_query, by_key = (_order(some, every, by_key) for by_key in (False, True))
    prefix = queries.group << 16
    padding = queries.group == 0
    query_values = (jnp.where(padding, -2, prefix | queries.branch), jnp.where(padding, -2, prefix))
    key_ids = jnp.where(keys.group == 0, -1, (keys.group << 16) | keys.branch)
    return Prepared(
        _stack(*query_values, queries.offset, queries.position),
        _stack(key_ids, keys.offset, keys.position),
        by_query[0],
        by_key[0],
        jnp.stack([by_query[1], by_key[1]]),
    )


def _stack(*values: jax.Array) -> jax.Array:
    """Returns arrays [B, T] as the first rows of one array [8, B·T]: a register has 8 rows."""
    stacked = jnp.stack([value.reshape(-1) for value in values])
    return jnp.pad(stacked, ((0, SUBLANES - len(values)), (0, 0)))


def block_sizes(t: int, s: int) -> tuple[int, int]:
    """Returns the sizes of the query and the key blocks of rows of t and s tokens, padded by `pad_tokens`."""
    return math.gcd(t, _QUERIES), math.gcd(s, _KEYS)


def pad_tokens(x: jax.Array) -> jax.Array:
    """Pads the tokens [B, T, ...] with zeros (group 0: padding) such that each device has a multiple of 128."""
    multiple = LANES * jax.sharding.get_abstract_mesh().shape.get("sequence", 1)
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % multiple), *[(0, 0)] * (x.ndim - 2)])


def query_block(pair: Any) -> Any:
    """Returns the query block of a pair, counted over all rows."""
    return pair >> (_BLOCK_BITS + _FLAG_BITS)


def key_block(pair: Any) -> Any:
    """Returns the key block of a pair, counted over all rows."""
    return (pair >> _FLAG_BITS) & ((1 << _BLOCK_BITS) - 1)


def _check_size(rows: int, query_blocks: int, key_blocks: int, tokens: int) -> None:
    """Raises InputError if the pairs of blocks of `rows` rows of `tokens` tokens exceed a TPU's scalar memory."""
    if rows * query_blocks * key_blocks > _MOST_PAIRS or rows * max(query_blocks, key_blocks) >= 1 << _BLOCK_BITS:
        raise InputError(
            f"model.attention = mosaic: {rows} rows of {tokens} tokens on a device make {rows * query_blocks} x "
            f"{key_blocks} pairs of blocks, more than the {_MOST_PAIRS} that fit in the scalar memory of a TPU; reduce "
            "config.data.row_length or config.train.rows_per_device"
        )


def _order(some: jax.Array, every: jax.Array, by_key: bool) -> tuple[jax.Array, jax.Array]:
    """Returns the pairs that have a visible pair of tokens, in the order of their output blocks, and their number.

    Args:
      some, every: bool [B, query blocks, key blocks]: whether a pair of blocks has a visible pair of tokens, and
        whether all its pairs are visible.
      by_key: the output blocks are the key blocks instead of the query blocks.

    Returns:
      int32 [B · query blocks · key blocks], of which the rest is unused; int32 [].
    """
    if by_key:
        some, every = some.mT, every.mT
    _, outer, inner = some.shape
    # Each output block is listed, so that it is written: one without a visible pair with its first inner block.
    listed = some | (~some.any(-1, keepdims=True) & (jnp.arange(inner) == 0))
    order = jnp.argsort(~listed.reshape(-1), stable=True).astype(jnp.int32)
    count = listed.sum(dtype=jnp.int32)
    own, other = order // inner, order // (outer * inner) * inner + order % inner
    changed, edge = own[1:] != own[:-1], jnp.ones(1, bool)
    first, last = jnp.concatenate([edge, changed]), jnp.concatenate([changed, edge])
    last |= jnp.arange(order.size) == count - 1
    flags = FIRST * first + LAST * last + PARTIAL * ~every.reshape(-1)[order]
    query, key = (other, own) if by_key else (own, other)
    return (query << _BLOCK_BITS | key) << _FLAG_BITS | flags, count
