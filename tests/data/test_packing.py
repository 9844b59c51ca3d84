"""Trees, rows and packed arrays."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.core.errors import InputError
from rmjax.data.packing import fill_rows, make_tree, pack, split_readouts
from rmjax.data.schema import Edge, Tree, packed_spec

sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=2, max_size=4)


@given(sequences)
def test_tree_gives_the_sequences_back_and_shares_all_it_can(given_sequences):
    tree = make_tree([np.array(s) for s in given_sequences])
    whole = [list(tree.prefix) + list(b) for b in tree.branches]
    assert whole == given_sequences
    assert all(len(b) >= 1 for b in tree.branches)
    extends = all(len(b) > 1 for b in tree.branches) and len({int(b[0]) for b in tree.branches}) == 1
    assert not extends, "one more token could have been shared"
    assert tree.readouts == tuple((k, len(b) - 1) for k, b in enumerate(tree.branches))


def test_tree_examples():
    tree = make_tree([np.array([5, 6]), np.array([5, 6, 8])])
    assert tree.prefix.tolist() == [5]
    assert [b.tolist() for b in tree.branches] == [[6], [6, 8]]
    assert (tree.length, tree.longest) == (4, 3)
    alone = make_tree([np.array([5, 6, 7])])
    assert alone.prefix.tolist() == []
    assert [b.tolist() for b in alone.branches] == [[5, 6, 7]]


def test_empty_sequence_is_refused():
    with pytest.raises(InputError, match=r"\[2, 0\] tokens.*remove the empty response"):
        make_tree([np.array([1, 2]), np.array([], int)])


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 90))
def test_pack_holds_each_tree_once_within_the_row(lengths, row_length):
    rows = pack(lengths, row_length)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= row_length for row in rows)


@given(st.lists(st.integers(1, 20), max_size=50), st.integers(20, 50))
def test_pack_is_first_fit_decreasing(lengths, row_length):
    rows, room = [], []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((r for r in range(len(rows)) if room[r] >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_length)
        rows[row].append(i)
        room[row] -= lengths[i]
    assert pack(lengths, row_length) == rows


def test_pack_is_fast_and_names_what_does_not_fit():
    lengths = np.random.default_rng(0).integers(20, 500, 20_000)
    start = time.perf_counter()
    rows = pack(lengths, 1024)
    assert time.perf_counter() - start < 5
    assert lengths.sum() / (len(rows) * 1024) > 0.98
    with pytest.raises(InputError, match=r"comparison 1 has 65 tokens.*row_length = 64"):
        pack([3, 65], 64)


def test_packed_arrays_of_a_small_example():
    pair = make_tree([np.array([5, 6, 7]), np.array([5, 6, 8, 9])], edges=(Edge(1, 0, margin=0.5, weight=2.0),))
    single = make_tree([np.array([3, 4])], labels=np.array([[1.5]]))
    steps = Tree(np.array([1], np.int32), (np.array([2, 2, 2], np.int32),), ((0, 0), (0, 2)))
    batch = fill_rows([[pair, single], [], [steps]], packed_spec(3, 8, 4, 2, 1))
    assert batch["tokens"].tolist() == [[5, 6, 7, 8, 9, 3, 4, 0], [0] * 8, [1, 2, 2, 2, 0, 0, 0, 0]]
    assert batch["group"].tolist() == [[1, 1, 1, 1, 1, 2, 2, 0], [0] * 8, [1, 1, 1, 1, 0, 0, 0, 0]]
    assert batch["branch"].tolist() == [[0, 0, 1, 2, 2, 1, 1, 0], [0] * 8, [0, 1, 1, 1, 0, 0, 0, 0]]
    assert batch["position"].tolist() == [[0, 1, 2, 2, 3, 0, 1, 0], [0] * 8, [0, 1, 2, 3, 0, 0, 0, 0]]
    assert batch["readout_index"].tolist() == [[2, 4, 6, 0], [0] * 4, [1, 3, 0, 0]]
    assert batch["readout_group"].tolist() == [[1, 1, 2, 0], [0] * 4, [1, 1, 0, 0]]
    np.testing.assert_array_equal(batch["labels"][0, :, 0], [np.nan, np.nan, 1.5, np.nan])
    assert batch["edge_winner"].tolist() == [[1, 0], [0, 0], [0, 0]]
    assert batch["edge_loser"].tolist() == [[0, 0], [0, 0], [0, 0]]
    assert batch["edge_margin"].tolist() == [[0.5, 0], [0, 0], [0, 0]]
    assert batch["edge_weight"].tolist() == [[2, 0], [0, 0], [0, 0]]
    for name, (shape, dtype, _) in packed_spec(3, 8, 4, 2, 1).items():
        assert (batch[name].shape, batch[name].dtype) == (shape, dtype)


@settings(max_examples=50)
@given(st.lists(sequences, min_size=1, max_size=6))
def test_each_conversation_can_be_read_from_the_row(comparisons):
    trees = [make_tree([np.array(s) for s in c], edges=(Edge(0, 1),)) for c in comparisons]
    rows = pack([t.length for t in trees], 64)
    readouts = np.array([len(t.readouts) for t in trees])
    most = max(int(sum(readouts[i] for i in row)) for row in rows)
    batch = fill_rows([[trees[i] for i in row] for row in rows], packed_spec(len(rows), 64, most, 6, 0))
    index = split_readouts(batch["readout_index"], rows, readouts)
    for b, row in enumerate(rows):
        for group, i in enumerate(row, 1):
            for k, sequence in enumerate(comparisons[i]):
                at = int(index[i][k])
                seen = (batch["group"][b] == group) & np.isin(batch["branch"][b], (0, k + 1)) & (np.arange(64) <= at)
                assert batch["tokens"][b, seen].tolist() == sequence
                assert batch["position"][b, seen].tolist() == list(range(len(sequence)))
            winner, loser = batch["edge_winner"][b, group - 1], batch["edge_loser"][b, group - 1]
            assert (batch["readout_index"][b, [winner, loser]] == index[i][:2]).all()


def test_tables_that_are_too_small_are_refused():
    tree = make_tree([np.array([1, 2]), np.array([1, 3])], edges=(Edge(0, 1),))
    with pytest.raises(ValueError, match="row 0 needs"):
        fill_rows([[tree, tree]], packed_spec(1, 8, 2, 2, 0))
