"""Prefix trees from token sequences.

Axis letters: S prefix tokens, K responses, R readouts, A attributes.
"""

from collections.abc import Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.schema import Edge, Tree


def shared_length(a: np.ndarray, b: np.ndarray) -> int:
    """Returns how many tokens two sequences have in common at their start."""
    shorter = min(len(a), len(b))
    if not shorter or a[0] != b[0]:
        return 0
    differs = a[:shorter] != b[:shorter]
    first = int(differs.argmax())
    return first if differs[first] else shorter


def make_tree(
    sequences: Sequence[np.ndarray],
    edges: tuple[Edge, ...] = (),
    labels: np.ndarray | None = None,
    readouts: tuple[tuple[int, int], ...] | None = None,
    shared: int | None = None,
) -> Tree:
    """Keeps the longest common prefix of K token sequences once.

    Where one sequence is a prefix of the others the shared part gives up its last token, so no branch is empty. One
    sequence alone shares nothing: its prefix is empty and it is branch 0 of one.

        make_tree([[5, 6, 7], [5, 6, 8, 9]])  ->  prefix [5, 6], branches [7], [8, 9]
        make_tree([[5, 6], [5, 6, 8]])        ->  prefix [5],    branches [6], [6, 8]

    Args:
      sequences: K whole conversations, int [length_k], none empty.
      edges, labels: what is known of the readouts.
      readouts: (branch, index within the branch); by default the last token of each branch.
      shared: the prefix's length S, where the caller knows it already.

    Raises:
      InputError: a sequence is empty.
    """
    sequences = [np.asarray(s, np.int32) for s in sequences]
    if not sequences or not all(map(len, sequences)):
        raise InputError(
            f"a comparison's responses have {[len(s) for s in sequences]} tokens; expected at least one response "
            "and at least one token in each: remove the empty response"
        )
    if shared is None:
        shared = min(map(len, sequences)) - 1 if len(sequences) > 1 else 0
        for other in sequences[1:]:
            shared = min(shared, shared_length(sequences[0], other))
    branches = tuple(s[shared:] for s in sequences)
    if readouts is None:
        readouts = tuple((k, len(branch) - 1) for k, branch in enumerate(branches))
    return Tree(sequences[0][:shared], branches, readouts, edges, labels)
