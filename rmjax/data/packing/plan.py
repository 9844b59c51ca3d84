"""The batch plan: the comparisons of each step, their rows and microbatches.

The plan is a pure function of the seed and the token lengths, so every host computes the same one. The comparisons of a
step depend only on the seed and the number of comparisons; packing changes only the order of additions. All steps are
packed at once, when the first of them is needed, and kept as flat arrays.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.packing.order import epoch_order, permutation
from rmjax.data.packing.rows import check_lengths, pack_steps

_BLOCK = 1 << 18  # comparisons that are packed at a time; bounds the memory that packing needs


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """The plan of a run over n comparisons.

    Attributes:
      lengths: unique tokens of each comparison, int [n].
      readouts, edges: number of readouts and of edges of each comparison, int [n].
      batch_size: comparisons a step, exactly; only the last step of a run that ends by epochs may have fewer.
      num_steps: steps of the run.
      total: comparisons over all steps; each epoch has a new order.
      row_length: tokens of a row.
      short_length: tokens of a row in microbatches all of whose rows fit in it; 0: no short microbatches.
      microbatch_rows: rows of a microbatch, over all devices.
      seed: of the order; None keeps the dataset's order (evaluation, `data.shuffle` = False).
      mixture: (size, draws an epoch) of each source, in the dataset's order; () draws each comparison once an epoch.
    """

    lengths: np.ndarray
    readouts: np.ndarray
    edges: np.ndarray
    batch_size: int
    num_steps: int
    total: int
    row_length: int
    short_length: int
    microbatch_rows: int
    seed: int | None
    mixture: tuple[tuple[int, int], ...] = ()

    def comparisons(self, step: int) -> np.ndarray:
        """Returns the indices of the comparisons of `step` (from 0), int64 [batch_size]."""
        return self._draw(step, step + 1)

    def drawn(self) -> np.ndarray:
        """Returns the indices of all comparisons that the plan draws, int64, sorted."""
        return np.unique(self._draw(0, self.num_steps))

    def _draw(self, start: int, stop: int) -> np.ndarray:
        """Returns the comparisons of the steps from `start` to before `stop`, one step after the other."""
        mixture = self.mixture or ((len(self.lengths), len(self.lengths)),)
        n = sum(draws for _, draws in mixture)
        first, last = start * self.batch_size, min(stop * self.batch_size, self.total)
        parts = []
        while first < last:
            epoch, offset = divmod(first, n)
            take = min(n - offset, last - first)
            parts.append(epoch_order(self.seed, epoch, mixture)[offset : offset + take])
            first += take
        return np.concatenate(parts)

    def rows(self, step: int) -> list[list[int]]:
        """Returns the comparisons of each row of a step, packed first-fit decreasing, short rows last."""
        packed = self._packed
        ends = packed.row_ends[packed.step_rows[step] : packed.step_rows[step + 1]]
        first = step * self.batch_size
        parts = np.split(packed.comparisons[first : first + self.batch_size], ends[:-1] - first)
        return [part.tolist() for part in parts]

    def microbatches(self, step: int) -> np.ndarray:
        """Returns the number of full-length microbatches and of all microbatches of a step, int32 [2]."""
        return self._packed.microbatches[step]

    def padded_tokens(self, steps: Iterable[int]) -> int:
        """Returns the number of tokens computed in these steps, padding included."""
        counts = self._packed.microbatches[list(steps)]
        tokens = _padded_tokens_per_row(counts, self.sizes.microbatches, self.row_length, self.short_length)
        return tokens * self.microbatch_rows

    @functools.cached_property
    def sizes(self) -> "PlanSizes":
        """Static sizes of the batch arrays and the cost of the plan."""
        packed = self._packed
        most = int(packed.microbatches.max())
        padded = _padded_tokens_per_row(packed.microbatches, most, self.row_length, self.short_length)
        return PlanSizes(most, packed.readouts, packed.edges, packed.tokens, padded * self.microbatch_rows)

    @functools.cached_property
    def _packed(self) -> "_PackedSteps":
        check_lengths(self.lengths, self.row_length)
        parts, readouts, edges, tokens = [], 0, 0, 0
        for chosen in self._blocks():
            order, row, used = _pack_short_last(self.lengths[chosen], self.row_length, self.short_length)
            chosen = np.take_along_axis(chosen, order, axis=1).ravel()
            starts = np.flatnonzero(np.diff(row, axis=1, prepend=-1))
            readouts = max(readouts, int(np.add.reduceat(self.readouts[chosen], starts).max()))
            edges = max(edges, int(np.add.reduceat(self.edges[chosen], starts).max()))
            tokens += int(used.sum())
            counts = count_microbatches(used, self.short_length, self.microbatch_rows)
            row_sizes = np.diff(starts, append=len(chosen))
            parts.append((chosen.astype(np.int32), row_sizes, np.count_nonzero(used, axis=1), counts))
        comparisons, row_sizes, rows, microbatches = map(np.concatenate, zip(*parts, strict=True))
        step_rows = np.concatenate([[0], np.cumsum(rows)])
        return _PackedSteps(comparisons, np.cumsum(row_sizes), step_rows, microbatches, readouts, edges, tokens)

    def _blocks(self) -> Iterator[np.ndarray]:
        """Yields the comparisons of successive steps, [steps, comparisons]; a shorter last step alone."""
        full, size = self.total // self.batch_size, max(1, _BLOCK // self.batch_size)
        for start in range(0, full, size):
            yield self._draw(start, min(start + size, full)).reshape(-1, self.batch_size)
        if full < self.num_steps:
            yield self._draw(full, self.num_steps)[None]


class _PackedSteps(NamedTuple):
    """The rows of all steps.

    Attributes:
      comparisons: int32 [total], those of a row one after the other.
      row_ends: int64 [rows], index in `comparisons` after the last one of each row.
      step_rows: int64 [steps + 1], index of the first row of each step.
      microbatches: int32 [steps, 2], see `BatchPlan.microbatches`.
      readouts, edges, tokens: see `PlanSizes`.
    """

    comparisons: np.ndarray
    row_ends: np.ndarray
    step_rows: np.ndarray
    microbatches: np.ndarray
    readouts: int
    edges: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class PlanSizes:
    """Sizes over a whole plan.

    Attributes:
      microbatches: the largest number of microbatches of a step.
      readouts, edges: entries of the largest readout and edge tables of a row.
      tokens, padded_tokens: unique tokens, and tokens computed with padding.
    """

    microbatches: int
    readouts: int
    edges: int
    tokens: int
    padded_tokens: int

    @property
    def fill(self) -> float:
        """Fraction of the computed tokens that are not padding."""
        return self.tokens / max(self.padded_tokens, 1)


def short_row_length(row_length: int, multiple: int = 1) -> int:
    """Returns the row length of short microbatches; 0 for none, as with a sequence axis, where rows are resharded."""
    return row_length // 2 if multiple == 1 and row_length % 64 == 0 else 0


def _pack_short_last(
    lengths: np.ndarray, row_length: int, short_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns `pack_steps` with the comparisons row by row; rows of at most `short_length` tokens are last."""
    order, row, used = pack_steps(lengths, row_length)
    position = np.argsort(np.argsort(used <= short_length, axis=1, kind="stable"), axis=1)  # of each row
    row = np.take_along_axis(position, row, axis=1)
    by_row = np.argsort(row, axis=1, kind="stable")
    return np.take_along_axis(order, by_row, axis=1), np.take_along_axis(row, by_row, axis=1), used


def count_microbatches(used: np.ndarray, short_length: int, microbatch_rows: int) -> np.ndarray:
    """Returns the number of microbatches before the first one with short rows only, and of all, int32 [..., 2].

    Args:
      used: tokens in each row, int [..., rows]; 0: no row.
    """
    rows = np.stack([np.count_nonzero(used > short_length, axis=-1), np.count_nonzero(used, axis=-1)], axis=-1)
    return -(-rows // microbatch_rows).astype(np.int32)


def _padded_tokens_per_row(counts: np.ndarray, most: int, row_length: int, short_length: int) -> int:
    """Returns the sum of the microbatches' row lengths; a plan of at most one microbatch a step has no short ones."""
    full, total = np.sum(counts, axis=0).tolist()
    return full * row_length + (total - full) * (short_length if most > 1 else row_length)


def training_plan(
    lengths: np.ndarray,
    readouts: np.ndarray,
    edges: np.ndarray,
    *,
    batch_size: int,
    steps: int,
    epochs: float,
    row_length: int,
    short_length: int = 0,
    microbatch_rows: int,
    seed: int | None,
    mixture: tuple[tuple[int, int], ...] = (),
) -> BatchPlan:
    """Returns a plan of `steps` full steps, or of `epochs` epochs, or of whichever ends first; see `BatchPlan`.

    Raises:
      InputError: there are no comparisons, or neither `steps` nor `epochs` is positive.
    """
    if not len(lengths):
        raise InputError("the training data has no usable comparison left; see the counts above")
    if steps <= 0 and epochs <= 0:
        raise InputError(f"config.train.steps is {steps} and config.train.epochs is {epochs}; set one of them, or both")
    epoch = sum(draws for _, draws in mixture) or len(lengths)
    totals = [steps * batch_size] if steps > 0 else []
    totals += [max(1, round(epoch * epochs))] if epochs > 0 else []
    total = min(totals)
    num_steps = math.ceil(total / batch_size)
    return BatchPlan(
        lengths, readouts, edges, batch_size, num_steps, total, row_length, short_length, microbatch_rows, seed, mixture
    )


def evaluation_plan(
    lengths: np.ndarray,
    readouts: np.ndarray,
    edges: np.ndarray,
    *,
    batch_size: int,
    row_length: int,
    microbatch_rows: int,
) -> BatchPlan:
    """Returns a plan of one pass over all comparisons in the dataset's order."""
    if not len(lengths):
        raise InputError("the validation data has no usable comparison left; see the counts above")
    steps = math.ceil(len(lengths) / batch_size)
    return BatchPlan(lengths, readouts, edges, batch_size, steps, len(lengths), row_length, 0, microbatch_rows, None)


def choose_row_length(
    lengths: np.ndarray, batch_size: int, microbatch_rows: int, multiple: int = 1, *, short_microbatches: bool = False
) -> int:
    """Returns the row length with the least padding.

    Candidates are multiples of 64 (128 above 1,024) from the longest comparison's length up to four times that, and at
    least up to 2,048; each is tried on the comparisons of up to 16 steps. The cost is the number of padded tokens,
    because attention skips the other comparisons of a row.

    Args:
      lengths, batch_size, microbatch_rows: see `BatchPlan`.
      multiple: the row length must also be divisible by this (the mesh's sequence axis).
      short_microbatches: whether the plan will have short microbatches (`short_row_length`).
    """
    longest = int(np.max(lengths))
    unit = math.lcm(64 if longest <= 1024 else 128, multiple)
    shortest = math.ceil(longest / unit) * unit
    order = permutation(0, 0, 0, len(lengths))
    drawn = lengths[order[: 16 * batch_size]]
    samples = np.zeros((-(-len(drawn) // batch_size), min(batch_size, len(drawn))), np.int64)
    samples.ravel()[: len(drawn)] = drawn  # the last step is filled up with comparisons of no tokens
    candidates = np.arange(shortest, max(4 * shortest, 2048) + 1, unit)
    costs: list[int] = []
    for block in np.array_split(candidates, math.ceil(len(candidates) * samples.size / _BLOCK)):
        used = pack_steps(np.tile(samples, (len(block), 1)), np.repeat(block, len(samples)))[2]
        for row_length, rows in zip(block.tolist(), np.split(used, len(block)), strict=True):
            short = short_row_length(row_length, multiple) if short_microbatches else 0
            counts = count_microbatches(rows, short, microbatch_rows)
            costs.append(_padded_tokens_per_row(counts, int(counts.max()), row_length, short))
    return int(candidates[np.argmin(costs)])  # of equal costs, the shortest
