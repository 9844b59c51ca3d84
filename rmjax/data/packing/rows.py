"""Pack trees into rows of fixed length, and fill the arrays of packed rows; used by training, scoring and serving.

Axis letters: B rows, T tokens of a row, R readouts, E edges, A attributes.
"""

from collections.abc import Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.schema import Tree


def pack(lengths: Sequence[int] | np.ndarray, row_length: int) -> list[list[int]]:
    """Returns rows of indices into `lengths`, each index once, packed first-fit decreasing.

    Each tree, longest first (ties by index), is put into the first row with enough free tokens. O(n log n): a segment
    tree of the rows' free tokens finds that row.

    >>> pack([3, 5, 2, 6], row_length=8)
    [[3, 2], [1, 0]]

    Args:
      lengths: unique tokens of each tree, int [n].
      row_length: T.

    Raises:
      InputError: a tree is longer than a row.
    """
    sizes = np.asarray(lengths, np.int64)
    if not len(sizes):
        return []
    check_lengths(sizes, row_length)
    order = np.argsort(-sizes, kind="stable")
    leaves = 1 << (len(sizes) - 1).bit_length()
    room = [row_length] * (2 * leaves)  # room[leaves + row] of a row; of an inner node, the maximum of its children
    rows: list[list[int]] = []
    for index, length in zip(order.tolist(), sizes[order].tolist(), strict=True):
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


def check_lengths(lengths: np.ndarray, row_length: int) -> None:
    """Raises InputError if a tree is longer than a row."""
    longest = int(np.argmax(lengths))
    if lengths[longest] > row_length:
        raise InputError(
            f"comparison {longest} has {int(lengths[longest])} tokens (prompt once, and every response); expected "
            f"at most row_length = {row_length}: raise data.row_length, or set it to 0 to choose it automatically"
        )


def pack_steps(lengths: np.ndarray, row_length: int | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packs S lists of n trees each, as `pack` does, in a tenth of its time if there are hundreds of lists.

    The next tree of every list is put into its row at the same time; a scan of the rows' free tokens finds that row.

    >>> order, row, used = pack_steps(np.array([[3, 5, 2, 6]]), row_length=8)
    >>> order.tolist(), row.tolist(), used.tolist()
    ([[3, 1, 0, 2]], [[0, 1, 1, 0]], [[8, 8, 0, 0]])

    Args:
      lengths: unique tokens of each tree, int [S, n]; at most `row_length`.
      row_length: T, of all lists or of each, int [S].

    Returns:
      Three arrays int [S, n]: the trees of each list, longest first; the row of each of these; the tokens in each row.
    """
    lists, n = lengths.shape
    order = np.argsort(-lengths, axis=1, kind="stable")
    sizes = np.ascontiguousarray(np.take_along_axis(lengths, order, axis=1).T, np.int32)
    room = np.empty((lists, n), np.int32)
    room[:] = np.reshape(row_length, (-1, 1))
    row = np.empty((n, lists), np.int32)
    line, scanned = np.arange(lists), 1  # the last row that is scanned is empty in every list
    for tree, size in enumerate(sizes):
        first = (room[:, :scanned] >= size[:, None]).argmax(axis=1)
        room[line, first] -= size
        row[tree] = first
        scanned = max(scanned, min(int(first.max()) + 2, n))
    return order, row.T, np.reshape(row_length, (-1, 1)) - room


def fill_rows(rows: Sequence[Sequence[Tree]], spec: dict[str, tuple]) -> dict[str, np.ndarray]:
    """Returns the arrays of packed rows, as in `schema.packed_spec`.

    Row b has the trees of `rows[b]` one after another, each as prefix, branch 0, branch 1, ...; rows after `len(rows)`
    are padding. The readout table of a row is its trees' readouts in order; `split_readouts` is the inverse.

    Args:
      rows: at most B lists of trees.
      spec: {name: (shape, dtype, fill)} from `packed_spec(B, T, R, E, A)`.

    Raises:
      ValueError: the rows, or a row's tokens, readouts or edges, exceed the spec.
    """
    batch = {name: np.full(shape, fill, dtype) for name, (shape, dtype, fill) in spec.items()}
    limits = [len(batch["tokens"])] + [batch[n].shape[1] for n in ("tokens", "readout_index", "edge_winner")]
    for b, row in enumerate(rows):
        sizes = [b + 1, sum(t.length for t in row), sum(len(t.readouts) for t in row), sum(len(t.edges) for t in row)]
        if any(size > limit for size, limit in zip(sizes, limits, strict=True)):
            raise ValueError(f"row {b} needs (rows, tokens, readouts, edges) {sizes}; the spec has {limits}")
        start = readout = edge = 0
        for group, tree in enumerate(row, 1):
            _fill_tree(batch, b, group, tree, start, readout, edge)
            start += tree.length
            readout += len(tree.readouts)
            edge += len(tree.edges)
    return batch


def _fill_tree(batch: dict, b: int, group: int, tree: Tree, start: int, readout: int, edge: int) -> None:
    """Writes a tree into row b: its tokens from `start`, its readouts from `readout`, its edges from `edge`."""
    lengths = np.array([len(branch) for branch in tree.branches])
    shift = np.cumsum(lengths) - lengths  # tokens between the prefix and branch k
    whole, tail = slice(start, start + tree.length), slice(start + len(tree.prefix), start + tree.length)
    batch["tokens"][b, whole] = np.concatenate((tree.prefix, *tree.branches))
    batch["group"][b, whole] = group
    batch["branch"][b, tail] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    batch["position"][b, whole] = np.arange(tree.length)
    batch["position"][b, tail] -= np.repeat(shift, lengths).astype(np.int32)

    count = len(tree.readouts)
    branch, index = np.array(tree.readouts, np.int64).reshape(count, 2).T
    # A negative index is in the prefix, which comes before the first branch.
    at = np.where(index < 0, tail.start + index, tail.start + shift[branch] + index)
    batch["readout_index"][b, readout : readout + count] = at
    batch["readout_group"][b, readout : readout + count] = group
    if tree.spans:
        batch["readout_span"][b, readout : readout + count] = tree.spans
    if tree.labels is not None:
        batch["labels"][b, readout : readout + count] = tree.labels
    for e, preference in enumerate(tree.edges, edge):
        for name, value in vars(preference).items():
            batch[f"edge_{name}"][b, e] = value + readout if name in ("winner", "loser") else value


def split_readouts(values: np.ndarray, rows: Sequence[Sequence[int]], readouts: np.ndarray) -> dict[int, np.ndarray]:
    """Returns the values of each comparison's readouts: {comparison: [readouts, ...]}.

    Args:
      values: [B, R, ...], one value per entry of the readout tables, B >= len(rows).
      rows: the comparisons of each row, in the order of their trees in `fill_rows`.
      readouts: number of readouts of each comparison, by index.
    """
    found = {}
    for b, row in enumerate(rows):
        start = 0
        for comparison in row:
            found[comparison] = values[b, start : start + int(readouts[comparison])]
            start += int(readouts[comparison])
    return found
