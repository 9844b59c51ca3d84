"""Sequences that wait together and begin alike become one tree, so that what they share is computed once."""

import bisect

import numpy as np

from rmjax.data.tokens.trees import shared_length

_SHORTEST_SHARED = 16  # tokens; below it a tree saves less than its coarser packing into rows may cost


class PrefixSet:
    """The sequences of a batch in the making, sorted, so that what begins alike lies together.

    Attributes:
      sequences: int32 [length] each, in the order in which they were added.
    """

    def __init__(self):
        self.sequences: list[np.ndarray] = []
        self._keys: list[bytes] = []  # sorted
        self._order: list[int] = []  # indices into `sequences`, as sorted
        self._shared: list[int] = []  # tokens that each has in common with the one sorted before it; 0 for the first

    def add(self, sequence: np.ndarray, room: float) -> int | None:
        """Adds a sequence if its new tokens fit into `room`.

        Returns:
          How many of its first tokens some sequence here had already, if worth sharing; None where it was not added.
        """
        key = sequence.tobytes()
        at = bisect.bisect_left(self._keys, key)
        last = at == len(self._order)
        if not last and self._keys[at] == key:  # the very same, as samples and retries may be
            after = len(sequence)
        else:
            after = 0 if last else shared_length(sequence, self.sequences[self._order[at]])
        # Of three in sorted order the outer two share what both share with the middle one, and no more.
        if at and not last and after > self._shared[at]:
            before = self._shared[at]
        else:
            before = shared_length(sequence, self.sequences[self._order[at - 1]]) if at else 0
        known = max(before, after)
        known = known if known >= _SHORTEST_SHARED else 0
        if len(sequence) - known > room:
            return None
        if not last:
            self._shared[at] = after
        self._keys.insert(at, key)
        self._order.insert(at, len(self.sequences))
        self._shared.insert(at, before)
        self.sequences.append(sequence)
        return known

    def groups(self, longest: int) -> list[tuple[list[int], int]]:
        """Partitions the sequences into groups, each to become one tree.

        Neighbours in sorted order are merged, those that share most first, whenever that saves tokens: a group of n
        sequences with p common tokens saves (n - 1) p.

            [1]*20 + [2], [3], [1]*20 + [4]  ->  [([0, 2], 20), ([1], 0)]

        Args:
          longest: unique tokens of the largest tree.

        Returns:
          Groups in order: indices into `sequences`, each index once, and the tokens p of their prefix.
        """
        # A group spans order[start:stop]; neighbours find each other by their ends.
        groups = {k: (k, k + 1, 0, len(self.sequences[i])) for k, i in enumerate(self._order)}  # start, stop, p, tokens
        starts = {k + 1: k for k in groups}  # by stop
        for k in sorted(range(1, len(self._order)), key=lambda k: -self._shared[k]):
            if self._shared[k] < _SHORTEST_SHARED:
                break
            left, right = groups[starts[k]], groups[k]
            # A branch is never empty, so a sequence that the others begin with keeps its last token to itself.
            common = min(left[2] or left[3] - 1, right[2] or right[3] - 1, self._shared[k])
            before = sum((stop - start - 1) * p for start, stop, p, _ in (left, right))
            saved = (right[1] - left[0] - 1) * common
            tokens = left[3] + right[3] + before - saved
            if saved > before and tokens <= longest:
                del groups[k]
                groups[left[0]] = (left[0], right[1], common, tokens)
                starts[right[1]] = left[0]
        return sorted((sorted(self._order[start:stop]), common) for start, stop, common, _ in groups.values())
