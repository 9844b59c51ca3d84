import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmjax.core.errors import InputError
from rmjax.data.packing.rows import fill_rows, pack, pack_steps, split_readouts
from rmjax.data.schema import Edge, packed_spec
from rmjax.data.tokens.trees import make_tree


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 90))
def test_packing_places_each_tree_once_and_never_overfills_a_row(lengths, row_length):
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


@given(
    st.integers(1, 5).flatmap(
        lambda lists: st.lists(st.lists(st.integers(1, 50), min_size=9, max_size=9), min_size=lists, max_size=lists)
    ),
    st.integers(50, 90),
)
def test_several_lists_are_packed_as_one_by_one(lengths, row_length):
    limits = row_length + np.arange(len(lengths))  # each list may have its own
    order, row, used = pack_steps(np.array(lengths), limits)
    for k, one in enumerate(lengths):
        rows = pack(one, int(limits[k]))
        assert [order[k, row[k] == b].tolist() for b in range(len(rows))] == rows
        assert used[k].tolist() == [sum(one[i] for i in placed) for placed in rows] + [0] * (9 - len(rows))


def test_tree_longer_than_a_row_raises():
    with pytest.raises(InputError, match=r"comparison 1 has 9 tokens.*row_length = 8"):
        pack([3, 9], 8)


def test_arrays_of_a_row():
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
