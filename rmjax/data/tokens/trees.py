"""Prefix trees from token sequences.

Axis letters: S prefix tokens, K responses, R readouts, A attributes.
"""

from collections.abc import Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.schema import Edge, Tree


def common_prefix_length(a: np.ndarray, b: np.ndarray) -> int:
    """Returns the number of equal tokens at the start of two sequences.

    >>> common_prefix_length(np.array([5, 6, 7]), np.array([5, 6, 8, 9]))
    2
    """
    shorter = min(len(a), len(b))
    if not shorter or a[0] != b[0]:
        return 0
    differs = a[:shorter] != b[:shorter]
    first = int(differs.argmax())
    return first if differs[first] else shorter


def make_tree(
    sequences: Sequence[Sequence[int] | np.ndarray],
    edges: tuple[Edge, ...] = (),
    labels: np.ndarray | None = None,
    readouts: tuple[tuple[int, int], ...] | None = None,
    prefix_length: int | None = None,
) -> Tree:
    """Returns the tree of K token sequences, with their longest common prefix stored once.

    Where a sequence is a prefix of the others, the shared prefix is one token shorter, so that no branch is empty. A
    single sequence has an empty prefix and one branch.

    >>> tree = make_tree([[5, 6, 7], [5, 6, 8, 9]])
    >>> tree.prefix.tolist(), [branch.tolist() for branch in tree.branches]
    ([5, 6], [[7], [8, 9]])
    >>> tree = make_tree([[5, 6], [5, 6, 8]])
    >>> tree.prefix.tolist(), [branch.tolist() for branch in tree.branches]
    ([5], [[6], [6, 8]])

    Args:
      sequences: K whole conversations, int [length_k], none empty.
      edges, labels: preferences between the readouts, and their labels [R, A].
      readouts: (branch, index within the branch); by default the last token of each branch.
      prefix_length: S, if already computed.

    Raises:
      InputError: a sequence is empty.
    """
    arrays = [np.asarray(sequence, np.int32) for sequence in sequences]
    if not arrays or not all(map(len, arrays)):
        raise InputError(
            f"a comparison's responses have {[len(s) for s in arrays]} tokens; expected at least one response "
            "and at least one token in each: remove the empty response"
        )
    if prefix_length is None:
        prefix_length = min(map(len, arrays)) - 1 if len(arrays) > 1 else 0
        for other in arrays[1:]:
            prefix_length = min(prefix_length, common_prefix_length(arrays[0], other))
    branches = tuple(array[prefix_length:] for array in arrays)
    if readouts is None:
        readouts = tuple((k, len(branch) - 1) for k, branch in enumerate(branches))
    return Tree(arrays[0][:prefix_length], branches, readouts, edges, labels)
