import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmjax.core.errors import InputError
from rmjax.data.tokens.trees import make_tree

sequences = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=8), min_size=1, max_size=4)


@given(sequences)
def test_tree_contains_every_sequence_and_no_empty_branch(conversations):
    tree = make_tree([np.array(c) for c in conversations])
    whole = [np.concatenate([tree.prefix, branch]).tolist() for branch in tree.branches]
    assert whole == conversations
    assert all(len(branch) for branch in tree.branches)
    if len(conversations) > 1:  # the prefix is the longest that leaves every branch a token
        longer = len(tree.prefix) + 1
        shared = len({tuple(c[:longer]) for c in conversations}) == 1
        assert not (shared and min(map(len, conversations)) > longer)


def test_tree_of_one_sequence_has_an_empty_prefix():
    tree = make_tree([np.array([4, 5])])
    assert len(tree.prefix) == 0
    assert tree.branches[0].tolist() == [4, 5]


def test_empty_sequence_raises():
    with pytest.raises(InputError, match="remove the empty response"):
        make_tree([np.array([1]), np.array([], int)])
