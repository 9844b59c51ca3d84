"""The attention kernel for TPUs beyond its results: lists of blocks, isolation of tokens, and compilation for TPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.models.attention import KERNELS, attend, make_mask, pairs
from rmjax.models.attention.mask import visible
from tests.models.test_attention import abstract_mesh, trees


@pytest.mark.parametrize("window", [0, 70])
def test_the_lists_hold_each_visible_pair_of_blocks_once(window):
    group, branch, position = trees(np.random.default_rng(1), 2, 1024, 90)
    mask = make_mask(group, branch, position, KERNELS["mosaic"], window)
    seen = np.asarray(visible(mask.tokens, mask.tokens, window)).reshape(2, 4, 256, 2, 512)
    some, every = seen.any((2, 4)), seen.all((2, 4))
    assert not some[:, 0, 1].any()
    assert some.sum() < some.size
    for number, (listed, by_key) in enumerate(((mask.prepared.by_query, False), (mask.prepared.by_key, True))):
        found = np.asarray(listed)[: mask.prepared.counts[number]]
        queries, keys, flags = pairs.query_block(found), pairs.key_block(found), found & 7
        assert len(found) == len(set(found >> 3))
        table = np.zeros((2, 4, 2), bool)
        table[queries // 4, queries % 4, keys % 2] = True
        empty = ~(some.any(1, keepdims=True) if by_key else some.any(2, keepdims=True))
        first = np.arange(4)[:, None] == 0 if by_key else np.arange(2) == 0
        np.testing.assert_array_equal(table, some | (empty & first))
        np.testing.assert_array_equal((flags & pairs.PARTIAL) == 0, every[queries // 4, queries % 4, keys % 2])
        own = keys if by_key else queries
        assert list(own) == sorted(own)
        np.testing.assert_array_equal((flags & pairs.FIRST) != 0, np.append(True, own[1:] != own[:-1]))
        np.testing.assert_array_equal((flags & pairs.LAST) != 0, np.append(own[1:] != own[:-1], True))
        assert set(own) == set(range(4 if by_key else 8))


def test_tokens_that_are_not_visible_do_not_reach_the_output():
    group, branch, position = trees(np.random.default_rng(0), 1, 256, 40)
    group[0, 60:] = np.where(group[0, 60:] > 0, group[0, 60:] + 1, 0)  # the token at 60 is in another group
    mask = make_mask(group, branch, position, KERNELS["mosaic"])
    draw = lambda seed: jax.random.normal(jax.random.key(seed), (1, 256, 2, 16))
    q, k, v = draw(0), draw(1), draw(2)
    hidden = ~np.asarray(visible(mask.tokens, mask.tokens))[0, :, 60]
    changed = attend(q, k.at[0, 60].set(jnp.nan), v.at[0, 60].set(1e30), mask)
    real = hidden & (group[0] > 0) & (np.arange(256) < 60)
    np.testing.assert_array_equal(changed[0, real], attend(q, k, v, mask)[0, real])
    assert real.sum() > 50


def test_rows_whose_lists_exceed_the_scalar_memory_are_refused():
    tokens = [jnp.zeros((1, 1 << 18), jnp.int32)] * 3
    with pytest.raises(InputError, match=r"1 rows of 262144 tokens .* 1024 x 512 pairs of blocks.*row_length"):
        jax.eval_shape(lambda *arrays: make_mask(*arrays, KERNELS["mosaic"]).prepared, *tokens)


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (40, 3.0)])
def test_the_kernel_is_lowered_for_tpus(window, softcap):
    """Mosaic refuses operations and blocks that a TPU does not have, which the interpreter does not show."""
    group, branch, position = trees(np.random.default_rng(0), 1, 512, 60)
    q, k = jnp.ones((1, 512, 4, 64), jnp.bfloat16), jnp.ones((1, 512, 2, 64), jnp.bfloat16)

    def gradients(q, k, v):
        mask = make_mask(group, branch, position, KERNELS["mosaic"], window)
        return jax.grad(lambda *qkv: attend(*qkv, mask, None, softcap).astype(jnp.float32).sum(), (0, 1, 2))(q, k, v)

    with jax.sharding.use_abstract_mesh(abstract_mesh("tpu")):
        lowered = jax.jit(gradients).trace(q, k, k).lower(lowering_platforms=("tpu",)).as_text()
    assert all(f"tree_attention_{part}" in lowered for part in ("forward", "dq", "dkv"))
