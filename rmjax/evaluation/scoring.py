"""Trees in, rewards out: the one scoring function of evaluate, score and the server.

Axis letters: B rows, T tokens of a row, R readouts, A attributes.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rmjax.core.errors import InputError
from rmjax.core.mesh import ROWS, replicated, row_shards
from rmjax.data.packing.rows import fill_rows, pack, split_readouts
from rmjax.data.schema import Tree, packed_spec
from rmjax.models.decoder import Params, RewardModel

_SHORTEST_ROW = 64  # tokens; below it a batch costs what its dispatch costs
_TREES_PER_ROW = 4  # with this many average trees to a row, first-fit leaves little padding


class Scorer:
    """Scores trees in a small fixed set of compiled shapes: `rows` rows of each length in `row_lengths`.

    Several processes must make the same calls; each gets all rewards.

    Args:
      params: parameters on `mesh`; an argument of the compiled programs, not a constant in them. Between calls they may
        lie elsewhere: `params` can be set.
      row_length: the longest row, so the longest conversation, in tokens.
      rows: B, a multiple of the mesh's row shards.
    """

    def __init__(self, model: RewardModel, params: Params, mesh: Mesh, row_length: int, rows: int):
        if rows < 1 or rows % row_shards(mesh):
            raise InputError(
                f"scoring in batches of {rows} rows on a mesh that splits rows {row_shards(mesh)} ways; "
                "choose a multiple of it"
            )
        if row_length < 1:
            raise InputError(f"max_length is {row_length}; expected at least one token")
        self.model, self.row_length, self.rows = model, row_length, rows
        self.params, self._mesh = params, mesh
        lengths = [row_length]
        while (shorter := 1 << ((lengths[-1] - 1).bit_length() - 1)) >= _SHORTEST_ROW:
            lengths.append(shorter)
        self.row_lengths = tuple(reversed(lengths))  # the powers of two below row_length, and itself
        self._programs: dict[int, jax.stages.Compiled] = {}

    @property
    def compiled(self) -> frozenset[int]:
        """The row lengths for which a program is compiled."""
        return frozenset(self._programs)

    def warm_up(self) -> None:
        """Compiles and runs every shape, so that no later call waits for the compiler."""
        for row_length in self.row_lengths:
            self._run([], row_length)

    def score(self, trees: Sequence[Tree]) -> list[np.ndarray]:
        """Returns the rewards at each tree's readouts, float32 [readouts, A] each; they may be non-finite.

        A tree that exceeds the longest row with all its responses is scored response by response.

        Raises:
          InputError: a single conversation is longer than the longest row.
        """
        parts = [_fitting_parts(tree, self.row_length) for tree in trees]
        flat = [part for tree_parts in parts for part in tree_parts]
        counts = np.array([len(part.readouts) for part in flat], np.int64)
        found: dict[int, np.ndarray] = {}
        for row_length, rows in self._batches([part.length for part in flat]):
            rewards = self._run([[flat[i] for i in row] for row in rows], row_length)
            found |= split_readouts(rewards, rows, counts)
        # A value that is not finite reaches its whole row, since 0 * NaN is NaN: alone, each tree answers for itself.
        for i in [i for i, rewards in found.items() if not np.isfinite(rewards).all()] if len(flat) > 1 else []:
            row_length, rows = self._last_batch([flat[i].length], [i])
            found |= split_readouts(self._run([[flat[i]]], row_length), rows, counts)
        scored = (found[i] for i in range(len(flat)))
        return [_join(tree, [next(scored) for _ in tree_parts]) for tree, tree_parts in zip(trees, parts, strict=True)]

    def _batches(self, lengths: Sequence[int]) -> Iterator[tuple[int, list[list[int]]]]:
        """Yields (row length, at most B rows of indices) that cover every index once."""
        if not lengths:
            return
        if max(lengths) > self.row_length:
            raise InputError(
                f"a conversation has {max(lengths)} tokens; at most {self.row_length} can be scored here: "
                "raise --max_length"
            )
        wanted = max(max(lengths), _TREES_PER_ROW * float(np.mean(lengths)))
        row_length = next((length for length in self.row_lengths if length >= wanted), self.row_length)
        packed = pack(lengths, row_length)
        whole = len(packed) // self.rows * self.rows
        for first in range(0, whole, self.rows):
            yield row_length, packed[first : first + self.rows]
        if left := [i for row in packed[whole:] for i in row]:
            yield self._last_batch([lengths[i] for i in left], left)

    def _last_batch(self, lengths: list[int], indices: list[int]) -> tuple[int, list[list[int]]]:
        """Returns the batch of the shortest rows that hold what is left, known to fit into B of the longest."""
        fits = lambda length: length >= max(lengths) and length * self.rows >= sum(lengths)
        options = ((length, pack(lengths, length)) for length in self.row_lengths if fits(length))
        row_length, packed = next(option for option in options if len(option[1]) <= self.rows)
        return row_length, [[indices[i] for i in row] for row in packed]

    def _run(self, rows: Sequence[Sequence[Tree]], row_length: int) -> np.ndarray:
        """Returns the rewards of one batch, float32 [B, R, A]."""
        # Readouts are at most one a token, so a table as long as the row holds any mix of trees.
        batch = fill_rows(rows, packed_spec(self.rows, row_length, row_length, 0, 1))
        with jax.set_mesh(self._mesh):  # in force in the calling thread alone
            placed = self._place(batch)
            if row_length not in self._programs:
                program = jax.jit(self.model.rewards, out_shardings=replicated(self._mesh))
                self._programs[row_length] = program.lower(self.params, placed).compile()
            return np.asarray(self._programs[row_length](self.params, placed))

    def _place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        sharding = NamedSharding(self._mesh, P(ROWS))
        if jax.process_count() == 1:
            return jax.device_put(batch, sharding)
        return {
            name: jax.make_array_from_callback(array.shape, sharding, lambda index, array=array: array[index])
            for name, array in batch.items()
        }


def _fitting_parts(tree: Tree, row_length: int) -> list[Tree]:
    """Returns the tree without what scoring has no use for; a tree too long for a row, as one tree a response."""
    if tree.length <= row_length or len(tree.branches) == 1:
        return [dataclasses.replace(tree, edges=(), labels=None)]
    shared = len(tree.prefix)
    return [
        Tree(
            tree.prefix[:0],
            (np.concatenate([tree.prefix, branch]),),
            tuple((0, shared + index) for at, index in tree.readouts if at == k),
        )
        for k, branch in enumerate(tree.branches)
    ]


def _join(tree: Tree, parts: list[np.ndarray]) -> np.ndarray:
    """Returns the rewards [readouts, A] in the tree's order; `parts` are of the whole tree or one a response."""
    if len(parts) == 1:
        return parts[0]
    following = [iter(part) for part in parts]
    return np.stack([next(following[branch]) for branch, _ in tree.readouts])
