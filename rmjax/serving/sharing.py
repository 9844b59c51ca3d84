"""Sequences that wait together and begin alike become one tree, so that what they share is computed once."""

import bisect
import itertools
from collections.abc import Sequence

import numpy as np

_SHORTEST_SHARED = 16  # tokens; below it a tree saves less than its coarser packing into rows may cost


def shared_length(a: np.ndarray, b: np.ndarray) -> int:
    """Returns how many tokens two sequences have in common at their start."""
    shorter = min(len(a), len(b))
    differs = a[:shorter] != b[:shorter]
    first = int(differs.argmax()) if shorter else 0
    return first if shorter and differs[first] else shorter


class PrefixSet:
    """The sequences of a batch in the making, and how many unique tokens they have."""

    def __init__(self):
        self._keys: list[bytes] = []  # sorted, so that what begins alike lies together
        self._sequences: list[np.ndarray] = []

    def add(self, sequence: np.ndarray, room: float) -> int | None:
        """Adds a sequence if its new tokens fit into `room`.

        Returns:
          How many of its first tokens some sequence here had already, if worth sharing; None where it was not added.
        """
        key = sequence.tobytes()
        at = bisect.bisect_left(self._keys, key)
        known = max((shared_length(sequence, s) for s in self._sequences[max(at - 1, 0) : at + 1]), default=0)
        known = known if known >= _SHORTEST_SHARED else 0
        if len(sequence) - known > room:
            return None
        self._keys.insert(at, key)
        self._sequences.insert(at, sequence)
        return known


def group(sequences: Sequence[np.ndarray], longest: int) -> list[list[int]]:
    """Partitions sequences into groups, each to become one tree.

    Neighbours in sorted order are merged, those that share most first, whenever that saves tokens: a group of n
    sequences with p common tokens saves (n - 1) p.

        group([[1]*20 + [2], [3], [1]*20 + [4]], 64)  ->  [[0, 2], [1]]

    Args:
      sequences: int32 [length] each, none empty.
      longest: unique tokens of the largest tree.

    Returns:
      Groups of indices into `sequences`, each index once, in order.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].tobytes())
    shared = [shared_length(sequences[a], sequences[b]) for a, b in itertools.pairwise(order)]
    # Group k spans order[start[k] : stop[k]]; neighbours find each other by their ends.
    groups = {k: (k, k + 1, 0, len(sequences[i])) for k, i in enumerate(order)}  # start: (start, stop, p, tokens)
    ends = {k + 1: k for k in range(len(order))}  # stop: start
    for k in sorted(range(len(shared)), key=lambda k: -shared[k]):
        if shared[k] < _SHORTEST_SHARED:
            break
        left, right = groups[ends[k + 1]], groups[k + 1]
        # A branch is never empty, so a sequence that the others begin with keeps its last token to itself.
        parts = [left[2] or left[3] - 1, right[2] or right[3] - 1, shared[k]]
        common, sizes = min(parts), [g[1] - g[0] for g in (left, right)]
        saved = (sum(sizes) - 1) * common
        before = sum((size - 1) * g[2] for size, g in zip(sizes, (left, right), strict=True))
        tokens = left[3] + right[3] + before - saved
        if saved > before and tokens <= longest:
            del groups[k + 1]
            groups[left[0]] = (left[0], right[1], common, tokens)
            ends[right[1]] = left[0]
    return sorted(sorted(order[start:stop]) for start, stop, _, _ in groups.values())
