"""Scoring in shared rows: rewards do not depend on packing, and non-finite values do not spread."""

import jax
import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh
from rmjax.data.schema import Tree
from rmjax.data.tokens.trees import make_tree
from rmjax.evaluation.scoring import Scorer
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel

VOCABULARY, LONGEST = 100, 200


@pytest.fixture(scope="module")
def scorer():
    decoder = DecoderConfig(VOCABULARY, 32, 64, 2, 4, 2, 8, 1e-5, 1e4, None, False, False, 512, 0.2)
    model = RewardModel(decoder, HeadConfig(("good", "short"), init=1.0))
    mesh = make_mesh((2, 1, 1, 1), jax.devices()[:2])
    with jax.set_mesh(mesh):
        params = model.init(jax.random.key(0))
    return Scorer(model, params, mesh, LONGEST, rows=2)


def sequences(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(VOCABULARY, size=length) for length in lengths]


def test_row_lengths_are_powers_of_two_up_to_the_longest_row(scorer):
    assert scorer.row_lengths == (64, 128, 200)
    assert Scorer(scorer.model, None, scorer._mesh, 128, 2).row_lengths == (64, 128)
    assert Scorer(scorer.model, None, scorer._mesh, 10, 2).row_lengths == (10,)


def test_rewards_do_not_depend_on_the_other_trees_of_a_batch(scorer):
    trees = [make_tree([s]) for s in sequences([3, 200, 64, 65, 1, 17, 150, 40, 90, 5, 33, 128])]
    alone = [scorer.score([tree])[0] for tree in trees]
    assert all(rewards.shape == (1, 2) and rewards.dtype == np.float32 for rewards in alone)
    assert np.std([rewards[0, 0] for rewards in alone]) > 0.01
    for order in (range(12), reversed(range(12)), [0, 2, 4], [1, 1, 6]):
        order = list(order)
        together = scorer.score([trees[i] for i in order])
        np.testing.assert_allclose(together, [alone[i] for i in order], atol=1e-5)


def test_a_shared_prompt_does_not_change_rewards_even_if_the_tree_must_be_split(scorer):
    for lengths in ([20, 30], [120, 130, 90]):  # the second is longer than a row with all its responses
        (prompt,), responses = sequences([40], 1), sequences(lengths, 2)
        whole = [np.concatenate([prompt, response]) for response in responses]
        tree = make_tree(whole)
        assert len(tree.prefix) >= 40
        expected = np.concatenate([scorer.score([make_tree([s])])[0] for s in whole])
        np.testing.assert_allclose(scorer.score([tree])[0], expected, atol=1e-5)


def test_readouts_keep_their_order_when_a_tree_is_split(scorer):
    prefix, *branches = (s.astype(np.int32) for s in sequences([80, 90, 100]))
    readouts = ((1, 99), (0, 10), (1, 5), (0, 89))
    found = scorer.score([Tree(prefix, tuple(branches), readouts)])[0]
    expected = [scorer.score([make_tree([np.concatenate([prefix, branches[k][: i + 1]])])])[0][0] for k, i in readouts]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_parts_of_a_tree_share_its_prompt(scorer, monkeypatch):
    (prompt,), responses = sequences([60], 1), sequences([40] * 9, 2)
    tree = make_tree([np.concatenate([prompt, response]) for response in responses])
    expected = np.concatenate([scorer.score([part])[0] for part in map(make_tree, _conversations(tree))])
    calls, run = [], type(scorer)._dispatch
    monkeypatch.setattr(type(scorer), "_dispatch", lambda self, *call: calls.append(call) or run(self, *call))
    np.testing.assert_allclose(scorer.score([tree])[0], expected, atol=1e-5)
    rows = [row for call in calls for row in call[0]]
    assert [[len(part.branches) for part in row] for row in rows] == [[3], [3], [3]]


def _conversations(tree):
    return [[np.concatenate([tree.prefix, branch])] for branch in tree.branches]


def test_nothing_is_compiled_after_the_warm_up(scorer):
    scorer.warm_up()
    assert scorer.compiled == set(scorer.row_lengths)
    scorer.score([make_tree([s]) for s in sequences([1, 60, 100, 200])])
    assert scorer.compiled == set(scorer.row_lengths)
    assert scorer.score([]) == []


def test_deterministic_rewards_are_bit_for_bit_those_of_each_conversation_alone(scorer):
    exact = Scorer(scorer.model, scorer.params, scorer._mesh, LONGEST, rows=4, deterministic=True)
    exact.warm_up()
    (prompt,), responses = sequences([40], 1), sequences([1, 20, 30, 120, 20], 2)
    whole = [np.concatenate([prompt, response]) for response in responses]
    trees = [make_tree([s]) for s in sequences([3, 200, 64, 65, 1, 17, 150])] + [make_tree(whole)]
    alone = [exact.score([tree])[0] for tree in trees[:-1]]
    alone.append(np.concatenate([exact.score([make_tree([s])])[0] for s in whole]))
    np.testing.assert_allclose(np.concatenate(alone), np.concatenate(scorer.score(trees)), atol=1e-5)
    rng = np.random.default_rng(0)
    for _ in range(5):
        order = rng.integers(len(trees), size=rng.integers(1, 12))
        for i, rewards in zip(order, exact.score([trees[i] for i in order]), strict=True):
            assert rewards.tobytes() == alone[i].tobytes()
    assert exact.compiled == set(exact.row_lengths)


def test_rewards_that_depend_on_the_row_are_not_called_deterministic(scorer, monkeypatch):
    exact = Scorer(scorer.model, scorer.params, scorer._mesh, LONGEST, rows=2, deterministic=True)
    run = exact._run
    monkeypatch.setattr(
        exact, "_run", lambda *arguments: run(*arguments) + np.arange(2, dtype=np.float32)[:, None, None]
    )
    with pytest.raises(InputError, match=r"equal conversations in the 2 rows of a batch .*; set rows_per_device to 1"):
        exact.warm_up()


def test_a_sequence_longer_than_a_row_is_rejected(scorer):
    with pytest.raises(InputError, match=r"201 tokens; at most 200"):
        scorer.score([make_tree([s]) for s in sequences([201, 3])])


@pytest.fixture(scope="module")
def broken(scorer):
    """The same model, except that the embedding of token 7 is NaN."""
    weight = scorer.params["decoder"]["embedding"]["weight"]
    params = jax.tree.map(lambda leaf: leaf, scorer.params)
    params["decoder"]["embedding"]["weight"] = weight.at[7].set(np.nan)
    return Scorer(scorer.model, params, scorer._mesh, LONGEST, rows=2)


def test_a_non_finite_tree_does_not_affect_the_others_in_its_row(scorer, broken):
    good, bad, other = (make_tree([s]) for s in ([1, 2, 3], [1, 7], [4, 5]))
    found = broken.score([good, bad, other])
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose([found[0], found[2]], scorer.score([good, other]), atol=1e-5)


@pytest.mark.parametrize("others", [[], [[4, 5]]])
def test_a_non_finite_branch_does_not_affect_the_others_of_its_tree(scorer, broken, others):
    prefix, responses = [1, 2, 3] * 10, [[4, 5], [6, 7], [8], [9, 7, 9]]
    tree, *others = [make_tree([prefix + response for response in responses]), *(make_tree([s]) for s in others)]
    found, expected = broken.score([tree, *others]), scorer.score([tree, *others])
    assert np.isnan(found[0][[1, 3]]).all()
    np.testing.assert_allclose(found[0][[0, 2]], expected[0][[0, 2]], atol=1e-5)
    if others:
        np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


def test_a_non_finite_prefix_affects_all_responses_and_no_other_tree(scorer, broken):
    (good,), bad = sequences([90]), make_tree([[1, 7, *[8] * 90, k] for k in (1, 2, 3)])
    found = broken.score([bad, make_tree([good[good != 7]])])
    assert found[0].shape == (3, 2)
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1], scorer.score([make_tree([good[good != 7]])])[0], atol=1e-5)


def test_readouts_keep_their_order_when_responses_are_scored_alone(scorer, broken):
    prefix, branches = np.array([1, 2], np.int32), (np.array([3, 4, 5], np.int32), np.array([6, 7], np.int32))
    tree = Tree(prefix, branches, ((1, 0), (0, 2), (1, 1), (0, 0)))
    found, expected = broken.score([tree])[0], scorer.score([tree])[0]
    assert np.isnan(found[[0, 2]]).all()
    np.testing.assert_allclose(found[[1, 3]], expected[[1, 3]], atol=1e-5)


def test_rows_must_divide_over_the_mesh(scorer):
    with pytest.raises(InputError, match="3 rows"):
        Scorer(scorer.model, None, scorer._mesh, 64, rows=3)
