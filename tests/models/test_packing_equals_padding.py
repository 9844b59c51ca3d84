"""Rewards and gradients of packed prefix trees equal those of padded conversations, one per row."""

import chex
import jax
import numpy as np
import pytest

from rmjax.core.mesh import make_mesh
from rmjax.data.packing.rows import fill_rows, pack
from rmjax.data.schema import Edge, packed_spec
from rmjax.data.tokens.trees import make_tree
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.attention import KERNELS
from rmjax.models.decoder import RewardModel
from rmjax.training.losses import bradley_terry

DECODER = DecoderConfig(50, 32, 64, 2, 4, 2, 8, 1e-5, 1e4, None, False, False, 512, 0.2)


def comparisons(n=9):
    rng = np.random.default_rng(0)
    draw = lambda low, high: rng.integers(1, 50, rng.integers(low, high))
    return [[np.concatenate([prompt, draw(1, 12)]) for _ in range(2)] for prompt in (draw(0, 20) for _ in range(n))]


def packed(row_length):
    trees = [make_tree(sequences, (Edge(0, 1),)) for sequences in comparisons()]
    rows = pack([tree.length for tree in trees], row_length)
    batch = fill_rows([[trees[i] for i in row] for row in rows], packed_spec(len(rows), row_length, 20, 10, 1))
    return batch, [i for row in rows for i in row]


def padded():
    """Returns a batch with one conversation per row, padded on the right; the loss is computed outside."""
    trees = [make_tree([sequence]) for pair in comparisons() for sequence in pair]
    return fill_rows([[tree] for tree in trees], packed_spec(len(trees), 40, 1, 1, 1))


@pytest.mark.parametrize("attention", KERNELS)
@pytest.mark.parametrize("row_length", [48, 64, 256])
def test_packed_equals_padded(row_length, attention):
    reference = RewardModel(DECODER, HeadConfig(init=1.0), attention="dense")
    model = RewardModel(DECODER, HeadConfig(init=1.0), attention=attention)
    rows, order = packed(row_length)

    def packed_loss(params):
        rewards = model.rewards(params, rows)
        return bradley_terry(rewards, rows)[0], rewards

    def padded_loss(params):
        rewards = reference.rewards(params, padded())[:, 0, 0].reshape(-1, 2)
        return -jax.nn.log_sigmoid(rewards[:, 0] - rewards[:, 1]).sum(), rewards

    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        params = model.init(jax.random.key(0))
        (loss, rewards), gradients = jax.jit(jax.value_and_grad(packed_loss, has_aux=True))(params)
        (expected_loss, expected), expected_gradients = jax.jit(jax.value_and_grad(padded_loss, has_aux=True))(params)
    used = rows["readout_group"] > 0
    np.testing.assert_allclose(rewards[..., 0][used].reshape(-1, 2), expected[np.array(order)], atol=1e-5)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    scale = lambda tree: jax.tree.map(lambda x, expected: x / np.abs(expected).max(), tree, expected_gradients)
    chex.assert_trees_all_close(scale(gradients), scale(expected_gradients), rtol=1e-7, atol=1e-5)


def test_hidden_states_depend_only_on_visible_tokens():
    model = RewardModel(DECODER, HeadConfig(init=1.0))
    rows, _ = packed(256)
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        params = model.init(jax.random.key(0))
        hidden = jax.jit(model.hidden)
        before = hidden(params, rows)
        others = rows["tokens"].copy()
        others[rows["group"] == 1] = 7
        after = hidden(params, rows | {"tokens": others})
        mine = rows["group"] > 1
        np.testing.assert_allclose(before[mine], after[mine], atol=1e-6)
        future = rows["tokens"].copy()
        future[:, 100:] = 7
        past = (rows["group"] > 0) & (np.arange(256) < 100)
        np.testing.assert_allclose(before[past], hidden(params, rows | {"tokens": future})[past], atol=1e-6)
        sibling = rows["tokens"].copy()
        sibling[(rows["group"] == 1) & (rows["branch"] == 1)] = 7
        kept = (rows["group"] > 0) & ((rows["group"] != 1) | (rows["branch"] != 1))
        np.testing.assert_allclose(before[kept], hidden(params, rows | {"tokens": sibling})[kept], atol=1e-6)
