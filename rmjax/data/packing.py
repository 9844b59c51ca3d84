"""Trees from token sequences, rows from trees, arrays from rows.

Axis letters: B rows, T tokens of a row, S prefix tokens, R readouts, E edges, K responses, A attributes.

Training, evaluation, scoring and the server all fill their arrays here, so a comparison is laid out one way everywhere.
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


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Packs trees into rows by first-fit decreasing: each tree, longest first, into the first row with room for it.

    Deterministic; equal lengths go by index. O(n log n): a tree of maxima over the rows' room finds the first row.

    Args:
      lengths: unique tokens of each tree.
      row_length: T, the tokens a row holds.

    Returns:
      Rows of indices into `lengths`, each index once.

    Raises:
      InputError: a tree is longer than a row.
    """
    lengths = np.asarray(lengths, np.int64)
    if not len(lengths):
        return []
    order = np.argsort(-lengths, kind="stable")
    if lengths[order[0]] > row_length:
        raise InputError(
            f"comparison {int(order[0])} has {int(lengths[order[0]])} tokens (shared prompt once, and every response); "
            f"expected at most row_length = {row_length}: raise data.row_length, or set it to 0 to have it chosen"
        )
    leaves = 1 << (len(lengths) - 1).bit_length()
    room = [row_length] * (2 * leaves)  # a heap: room[leaves + row] is a row's, any other node its children's maximum
    rows: list[list[int]] = []
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < length:
                node += 1
        if node - leaves == len(rows):
            rows.append([])
        rows[node - leaves].append(index)
        room[node] -= length
        while node > 1:
            node //= 2
            left, right = room[2 * node], room[2 * node + 1]
            room[node] = left if left > right else right
    return rows


def fill_rows(rows: Sequence[Sequence[Tree]], spec: dict[str, tuple]) -> dict[str, np.ndarray]:
    """Lays trees out in the arrays of `schema.packed_spec`.

    Row b holds the trees of `rows[b]` one after the other, each as prefix, branch 0, branch 1, ...; rows beyond
    `len(rows)` stay padding. The readout table of a row is its trees' readouts in order: `split_readouts` undoes it.

    Args:
      rows: at most B lists of trees.
      spec: {name: (shape, dtype, fill)} from `packed_spec(B, T, R, E, A)`.

    Raises:
      ValueError: a row's tokens, readouts or edges exceed the spec: its sizes were not computed from these rows.
    """
    batch = {name: np.full(shape, fill, dtype) for name, (shape, dtype, fill) in spec.items()}
    limits = [len(batch["tokens"])] + [batch[n].shape[1] for n in ("tokens", "readout_index", "edge_winner")]
    for b, row in enumerate(rows):
        sizes = [b + 1, sum(t.length for t in row), sum(len(t.readouts) for t in row), sum(len(t.edges) for t in row)]
        if any(size > limit for size, limit in zip(sizes, limits, strict=True)):
            raise ValueError(f"row {b} needs (rows, tokens, readouts, edges) {sizes}, the spec has {limits}")
        start = readout = edge = 0
        for group, tree in enumerate(row, 1):
            _fill_tree(batch, b, group, tree, start, readout, edge)
            start += tree.length
            readout += len(tree.readouts)
            edge += len(tree.edges)
    return batch


def _fill_tree(batch: dict, b: int, group: int, tree: Tree, start: int, readout: int, edge: int) -> None:
    """Writes one tree into row b, its tokens from `start`, its readouts and edges from their tables' next entries."""
    lengths = np.array([len(branch) for branch in tree.branches])
    shift = np.cumsum(lengths) - lengths  # how far branch k lies behind the end of the prefix
    whole, tail = slice(start, start + tree.length), slice(start + len(tree.prefix), start + tree.length)
    batch["tokens"][b, whole] = np.concatenate((tree.prefix, *tree.branches))
    batch["group"][b, whole] = group
    batch["branch"][b, tail] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    batch["position"][b, whole] = np.arange(tree.length)
    batch["position"][b, tail] -= np.repeat(shift, lengths).astype(np.int32)

    count = len(tree.readouts)
    branch, index = np.array(tree.readouts, np.int64).reshape(count, 2).T
    batch["readout_index"][b, readout : readout + count] = tail.start + shift[branch] + index
    batch["readout_group"][b, readout : readout + count] = group
    if tree.labels is not None:
        batch["labels"][b, readout : readout + count] = tree.labels
    for e, known in enumerate(tree.edges, edge):
        batch["edge_winner"][b, e] = readout + known.winner
        batch["edge_loser"][b, e] = readout + known.loser
        for name in ("margin", "weight", "strength", "target"):
            batch[f"edge_{name}"][b, e] = getattr(known, name)


def split_readouts(values: np.ndarray, rows: Sequence[Sequence[int]], readouts: np.ndarray) -> dict[int, np.ndarray]:
    """Finds each comparison's rewards again: {index: [its readouts, ...]}.

    Args:
      values: [B, R, ...], one value per entry of the readout tables, B >= len(rows).
      rows: the comparisons' indices of each row, in the order in which `fill_rows` got their trees.
      readouts: readouts of each comparison, by index.
    """
    found = {}
    for b, row in enumerate(rows):
        start = 0
        for index in row:
            found[index] = values[b, start : start + int(readouts[index])]
            start += int(readouts[index])
    return found
