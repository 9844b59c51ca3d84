import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmjax.core.errors import InputError
from rmjax.data.packing.rows import fill_rows, pack, split_readouts
from rmjax.data.schema import Edge, packed_spec
from rmjax.data.tokens.trees import make_tree

sequences = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), min_size=1, max_size=4)


@given(sequences)
def test_a_tree_gives_back_every_sequence_and_no_branch_is_empty(conversations):
    tree = make_tree([np.array(c) for c in conversations])
    whole = [np.concatenate([tree.prefix, branch]).tolist() for branch in tree.branches]
    assert whole == conversations
    assert all(len(branch) for branch in tree.branches)
    if len(conversations) > 1:  # the prefix is the longest that leaves every branch a token
        longer = len(tree.prefix) + 1
        shared = len({tuple(c[:longer]) for c in conversations}) == 1
        assert not (shared and min(map(len, conversations)) > longer)


def test_one_sequence_has_no_prefix():
    tree = make_tree([np.array([4, 5])])
    assert len(tree.prefix) == 0
    assert tree.branches[0].tolist() == [4, 5]


def test_an_empty_sequence_is_refused():
    with pytest.raises(InputError, match="remove the empty response"):
        make_tree([np.array([1]), np.array([], int)])


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 90))
def test_packing_places_each_tree_once_and_fills_no_row_beyond_its_length(lengths, row_length):
    rows = pack(lengths, row_length)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= row_length for row in rows)
    # First fit: no tree could have gone into an earlier row as it stands.
    totals = [sum(lengths[i] for i in row) for row in rows]
    assert all(
        totals[i] + lengths[rows[j][0]] > row_length
        for j in range(len(rows))
        for i in range(j)
        if lengths[rows[j][0]] <= min(lengths[k] for k in rows[i])
    )


def test_a_tree_longer_than_a_row_is_refused():
    with pytest.raises(InputError, match=r"comparison 1 has 9 tokens.*row_length = 8"):
        pack([3, 9], 8)


def test_a_row_is_laid_out_exactly():
    first = make_tree([np.array([5, 6, 7]), np.array([5, 6, 8, 9])], (Edge(1, 0, margin=0.5, weight=2.0),))
    second = make_tree([np.array([3, 4])])
    batch = fill_rows([[first, second]], packed_spec(2, 8, 4, 2, 1))
    assert batch["tokens"].tolist() == [[5, 6, 7, 8, 9, 3, 4, 0], [0] * 8]
    assert batch["group"][0].tolist() == [1, 1, 1, 1, 1, 2, 2, 0]
    assert batch["branch"][0].tolist() == [0, 0, 1, 2, 2, 1, 1, 0]
    assert batch["position"][0].tolist() == [0, 1, 2, 2, 3, 0, 1, 0]
    assert batch["readout_index"][0].tolist() == [2, 4, 6, 0]
    assert batch["readout_group"][0].tolist() == [1, 1, 2, 0]
    assert (batch["edge_winner"][0, 0], batch["edge_loser"][0, 0]) == (1, 0)
    assert (batch["edge_margin"][0, 0], batch["edge_weight"][0].tolist()) == (0.5, [2.0, 0.0])
    found = split_readouts(np.arange(8).reshape(2, 4), [[7, 3]], {7: 2, 3: 1})
    assert {i: v.tolist() for i, v in found.items()} == {7: [0, 1], 3: [2]}
