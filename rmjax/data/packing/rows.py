"""Trees from token sequences, rows from trees, arrays from rows.

Axis letters: B rows, T tokens of a row, S prefix tokens, R readouts, E edges, K responses, A attributes.

Training, evaluation, scoring and the server all fill their arrays here, so a comparison is laid out one way everywhere.
"""

from collections.abc import Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.schema import Tree


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
