"""Batched scoring of trees in a small fixed set of compiled shapes, for evaluation, score files and serving.

Axis letters: B rows, T tokens of a row, R readouts, A attributes.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rmjax.core.errors import InputError
from rmjax.core.mesh import ROWS, replicated, row_shards
from rmjax.data.packing.rows import fill_rows, pack, split_readouts
from rmjax.data.schema import Tree, packed_spec
from rmjax.evaluation.rewards import Rewards, make_rewards
from rmjax.models.correction import Correction
from rmjax.models.decoder import Params, RewardModel

_MIN_ROW_LENGTH = 64  # tokens; the time of a shorter batch is dominated by its dispatch
_TREES_PER_ROW = 4  # rows that hold this many trees of mean length have little padding after first-fit packing


def compile_scoring(model: RewardModel, params: Params, batch: Any, mesh: Mesh) -> jax.stages.Compiled:
    """Returns the program that scores a batch: parameters and batch to rewards float32 [B, R, A].

    Of an uncertain head the result is [B, R, 2 A], see `RewardModel.rewards_and_std`.

    Args:
      params, batch: arrays, or their shapes and shardings on devices that need not be there.
    """
    compute = model.rewards_and_std if model.head.uncertain else model.rewards
    with jax.set_mesh(mesh):
        return jax.jit(compute, out_shardings=replicated(mesh)).lower(params, batch).compile()


class Scorer:
    """Scores trees in batches of `rows` rows, with one compiled program for each row length in `row_lengths`.

    In a multi-process run all processes must make the same calls; each process gets all rewards.

    Args:
      params: parameters on `mesh`; the attribute may be reassigned between calls (offloaded to host memory and back).
      row_length: T of the longest row, hence the longest conversation, in tokens; made a multiple of the mesh's axis
        `sequence`.
      rows: B, a multiple of the mesh's row shards.
      deterministic: each conversation has a row of its own, whose length depends on it alone, so that its reward is bit
        for bit the same whatever else is scored; without it, equal up to float rounding.
      correction: of the reward, after the head.
    """

    def __init__(
        self,
        model: RewardModel,
        params: Params,
        mesh: Mesh,
        row_length: int,
        rows: int,
        *,
        deterministic: bool = False,
        correction: Correction | None = None,
    ):
        if rows < 1 or rows % row_shards(mesh):
            raise InputError(f"scoring batch of {rows} rows; expected a multiple of the {row_shards(mesh)} row shards")
        if row_length < 1:
            raise InputError(f"max_length is {row_length}; expected at least 1 token")
        shards = mesh.shape["sequence"]
        self.model, self.row_length, self.rows = model, -(-row_length // shards) * shards, rows
        self.params, self._mesh, self.deterministic = params, mesh, deterministic
        self.correction = correction
        lengths = [self.row_length]
        while (shorter := 1 << ((lengths[-1] - 1).bit_length() - 1)) >= _MIN_ROW_LENGTH and shorter % shards == 0:
            lengths.append(shorter)
        self.row_lengths = tuple(reversed(lengths))  # the powers of two below row_length, and row_length
        self._programs: dict[int, jax.stages.Compiled] = {}

    @property
    def compiled(self) -> frozenset[int]:
        """The row lengths for which a program is compiled."""
        return frozenset(self._programs)

    def warm_up(self) -> None:
        """Compiles and runs the program of every row length, so that no later call compiles.

        Raises:
          InputError: rewards are to be deterministic, and those of equal rows of a batch differ on this device.
        """
        for row_length in self.row_lengths:
            if not self.deterministic:
                self._run([], row_length)
                continue
            tokens = np.arange(row_length, dtype=np.int32) % self.model.decoder.vocab_size
            probe = Tree(tokens[:0], (tokens,), ((0, row_length - 1),))
            rewards = self._run([[probe]] * self.rows, row_length)[:, 0]
            if any(row.tobytes() != rewards[0].tobytes() for row in rewards):
                raise InputError(
                    f"rewards are not deterministic: equal conversations in the {self.rows} rows of a batch have "
                    f"rewards {rewards.min()!s} to {rewards.max()!s} on this device; set rows_per_device to 1"
                )

    def score(self, trees: Sequence[Tree]) -> list[np.ndarray]:
        """Returns the rewards at each tree's readouts, float32 [readouts, A] each, corrected.

        They are `Rewards`, which have `reward_std` if the model's head is uncertain.

        A tree longer than the longest row is scored as several that share its prefix, each of as many responses as fit
        into a row. One non-finite sequence makes its whole
        row non-finite, since in attention 0 * NaN is NaN: non-finite trees are scored again, first the tree alone,
        then each of its responses alone, so that only rewards of the responses that cause it remain non-finite.

        Raises:
          InputError: a single conversation is longer than the longest row.
        """
        trees = [dataclasses.replace(tree, edges=(), labels=None) for tree in trees]
        split = [_split(tree, 0 if self.deterministic else self.row_length) for tree in trees]
        parts = [part for of_tree in split for _, part in of_tree]
        counts = np.array([len(part.readouts) for part in parts], np.int64)
        found: dict[int, np.ndarray] = {}
        batches = list(self._batches([part.length for part in parts]))
        filled = ([[parts[i] for i in row] for row in rows] for _, rows in batches)
        dispatched = (self._dispatch(rows, length) for rows, (length, _) in zip(filled, batches, strict=True))
        for rewards, (_, rows) in zip(_ahead(dispatched), batches, strict=True):
            found |= split_readouts(np.asarray(rewards), rows, counts)
        for i in [i for i, rewards in found.items() if not np.isfinite(rewards).all()]:
            if len(parts) > 1:
                found[i] = self._score_alone(parts[i])
            if len(parts[i].branches) > 1 and not np.isfinite(found[i]).all():
                alone = _split(parts[i], 0)
                found[i] = _join(parts[i], alone, [self._score_alone(part) for _, part in alone])
        scored = (found[i] for i in range(len(parts)))
        joined = (_join(tree, own, [next(scored) for _ in own]) for tree, own in zip(trees, split, strict=True))
        return [self._finish(tree, values) for tree, values in zip(trees, joined, strict=True)]

    def _finish(self, tree: Tree, values: np.ndarray) -> Rewards:
        """Returns the corrected rewards of what `_run` returned for a tree."""
        head = self.model.head
        rewards = make_rewards(values, len(head.attributes), head.uncertain)
        if self.correction is not None:
            tokens = [len(tree.prefix) + len(tree.branches[k]) for k, _ in tree.readouts]
            rewards[:, 0] = self.correction(np.asarray(rewards[:, 0]), np.array(tokens))
        return rewards

    def _score_alone(self, tree: Tree) -> np.ndarray:
        return self._run([[tree]], self._shortest_row(tree.length))[0, : len(tree.readouts)]

    def _shortest_row(self, length: int) -> int:
        return next(row_length for row_length in self.row_lengths if row_length >= length)

    def _batches(self, lengths: Sequence[int]) -> Iterator[tuple[int, list[list[int]]]]:
        """Yields (row length, at most B rows of indices) that cover every index once."""
        if not lengths:
            return
        if max(lengths) > self.row_length:
            raise InputError(
                f"a conversation has {max(lengths)} tokens; at most {self.row_length} can be scored: raise --max_length"
            )
        if self.deterministic:
            by_row_length: dict[int, list[int]] = {}
            for i, length in enumerate(lengths):
                by_row_length.setdefault(self._shortest_row(length), []).append(i)
            for row_length, indices in by_row_length.items():
                for first in range(0, len(indices), self.rows):
                    yield row_length, [[i] for i in indices[first : first + self.rows]]
            return
        wanted = max(max(lengths), _TREES_PER_ROW * float(np.mean(lengths)))
        row_length = next((length for length in self.row_lengths if length >= wanted), self.row_length)
        packed = pack(lengths, row_length)
        full = len(packed) // self.rows * self.rows
        for first in range(0, full, self.rows):
            yield row_length, packed[first : first + self.rows]
        if rest := [i for row in packed[full:] for i in row]:
            yield self._last_batch([lengths[i] for i in rest], rest)

    def _last_batch(self, lengths: list[int], indices: list[int]) -> tuple[int, list[list[int]]]:
        """Returns the batch with the shortest rows that hold `indices`, which fit into B of the longest rows."""
        shortest = max(max(lengths), -(-sum(lengths) // self.rows))
        options = ((length, pack(lengths, length)) for length in self.row_lengths if length >= shortest)
        row_length, packed = next(option for option in options if len(option[1]) <= self.rows)
        return row_length, [[indices[i] for i in row] for row in packed]

    def _run(self, rows: Sequence[Sequence[Tree]], row_length: int) -> np.ndarray:
        return np.asarray(self._dispatch(rows, row_length))

    def _dispatch(self, rows: Sequence[Sequence[Tree]], row_length: int) -> jax.Array:
        """Returns the rewards of one batch, float32 [B, R, A]; of an uncertain head [B, R, 2 A], see `RewardModel`."""
        # There is at most one readout per token, so R = T fits any combination of trees.
        batch = fill_rows(rows, packed_spec(self.rows, row_length, row_length, 0, 1))
        with jax.set_mesh(self._mesh):  # a setting of the calling thread
            placed = self._place(batch)
            if row_length not in self._programs:
                self._programs[row_length] = compile_scoring(self.model, self.params, placed, self._mesh)
            return self._programs[row_length](self.params, placed)

    def _place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        sharding = NamedSharding(self._mesh, P(ROWS))
        if jax.process_count() == 1:
            return jax.device_put(batch, sharding)
        return {
            name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
            for name, array in batch.items()
        }


def _ahead(dispatched: Iterator[jax.Array]) -> Iterator[jax.Array]:
    """Yields arrays, each after the next one is dispatched: batches are packed while the device computes."""
    previous = None
    for array in dispatched:
        if previous is not None:
            yield previous
        previous = array
    if previous is not None:
        yield previous


_Parts = list[tuple[list[int], Tree]]  # of a tree: the branches of each part, and the part


def _split(tree: Tree, row_length: int) -> _Parts:
    """Returns a tree that fits into a row as it is, else parts of as many branches as fit, but of at least one."""
    if tree.length <= row_length:
        return [(list(range(len(tree.branches))), tree)]
    groups: list[list[int]] = []
    room = 0
    for k, branch in enumerate(tree.branches):
        if not groups or len(branch) > room:
            groups.append([])
            room = row_length - len(tree.prefix)
        groups[-1].append(k)
        room -= len(branch)
    return [(group, _part(tree, group)) for group in groups]


def _part(tree: Tree, group: Sequence[int]) -> Tree:
    """Returns the tree of some of the branches; a conversation alone is one branch without a prefix."""
    chosen = [i for i, (k, _) in enumerate(tree.readouts) if k in group]
    start = len(tree.prefix) if len(group) == 1 else 0
    branches = tuple(np.concatenate([tree.prefix[:start], tree.branches[k]]) for k in group)
    readouts = tuple((group.index(tree.readouts[i][0]), start + tree.readouts[i][1]) for i in chosen)
    spans = tuple(tree.spans[i] for i in chosen) if tree.spans else ()
    return Tree(tree.prefix[start:], branches, readouts, spans=spans)


def _join(tree: Tree, parts: _Parts, rewards: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the rewards [readouts, A] in the tree's order, from those of its parts."""
    if len(parts) == 1:
        return rewards[0]
    following: dict[int, Iterator[np.ndarray]] = {}
    for (group, _), values in zip(parts, rewards, strict=True):
        following |= dict.fromkeys(group, iter(values))
    return np.stack([next(following[branch]) for branch, _ in tree.readouts])
