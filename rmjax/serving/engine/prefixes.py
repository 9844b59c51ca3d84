"""Grouping of queued sequences by common prefix, so that each shared prefix is computed once."""

import bisect

import numpy as np

from rmjax.data.tokens.trees import common_prefix_length

_MIN_SHARED = 16  # tokens; for shorter prefixes a tree saves less than its coarser packing into rows may cost


class PrefixSet:
    """The sequences of a batch being formed, kept in sorted order, where common prefixes are adjacent.

    Attributes:
      sequences: int32 [length] each, in the order in which they were added.
    """

    def __init__(self):
        self.sequences: list[np.ndarray] = []
        self._keys: list[bytes] = []  # sorted
        self._order: list[int] = []  # indices into `sequences`, in sorted order
        self._shared: list[int] = []  # length of the prefix shared with the sequence sorted before; 0 for the first

    def add(self, sequence: np.ndarray, max_new_tokens: float) -> int | None:
        """Adds a sequence if it has at most `max_new_tokens` tokens that are not shared.

        Returns:
          The length of the longest prefix shared with a sequence added before, 0 if below 16; None if not added.
        """
        key = sequence.tobytes()
        at = bisect.bisect_left(self._keys, key)
        last = at == len(self._order)
        if not last and self._keys[at] == key:  # a duplicate, as in repeated samples and retries
            after = len(sequence)
        else:
            after = 0 if last else common_prefix_length(sequence, self.sequences[self._order[at]])
        # Of three sorted sequences, the outer two share exactly the shorter of the prefixes shared with the middle one.
        if at and not last and after > self._shared[at]:
            before = self._shared[at]
        else:
            before = common_prefix_length(sequence, self.sequences[self._order[at - 1]]) if at else 0
        shared = max(before, after)
        shared = shared if shared >= _MIN_SHARED else 0
        if len(sequence) - shared > max_new_tokens:
            return None
        if not last:
            self._shared[at] = after
        self._keys.insert(at, key)
        self._order.insert(at, len(self.sequences))
        self._shared.insert(at, before)
        self.sequences.append(sequence)
        return shared

    def groups(self, max_tokens: int) -> list[tuple[list[int], int]]:
        """Returns groups of sequences, each to become one tree, as (indices into `sequences`, prefix length p).

        Adjacent groups in sorted order are merged, longest shared prefix first, if that saves tokens: a group of n
        sequences with a common prefix of p tokens saves (n - 1) p tokens.

        >>> prefixes = PrefixSet()
        >>> for sequence in ([1] * 20 + [2], [3], [1] * 20 + [4]):
        ...     _ = prefixes.add(np.array(sequence, np.int32), np.inf)
        >>> prefixes.groups(64)
        [([0, 2], 20), ([1], 0)]

        Args:
          max_tokens: unique tokens of the largest tree.
        """
        # A group spans order[start:stop]; its left neighbor is found by its stop.
        groups = {k: (k, k + 1, 0, len(self.sequences[i])) for k, i in enumerate(self._order)}  # start, stop, p, tokens
        starts = {k + 1: k for k in groups}  # by stop
        for k in sorted(range(1, len(self._order)), key=lambda k: -self._shared[k]):
            if self._shared[k] < _MIN_SHARED:
                break
            left, right = groups[starts[k]], groups[k]
            # Branches are never empty: a sequence that is a prefix of the others keeps its last token as its branch.
            common = min(left[2] or left[3] - 1, right[2] or right[3] - 1, self._shared[k])
            before = sum((stop - start - 1) * p for start, stop, p, _ in (left, right))
            saved = (right[1] - left[0] - 1) * common
            tokens = left[3] + right[3] + before - saved
            if saved > before and tokens <= max_tokens:
                del groups[k]
                groups[left[0]] = (left[0], right[1], common, tokens)
                starts[right[1]] = left[0]
        return sorted((sorted(self._order[start:stop]), common) for start, stop, common, _ in groups.values())
