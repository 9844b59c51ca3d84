"""The batch plan: which comparisons make step n, in which rows, in which microbatches.

A pure function of (seed, token lengths), computed alike on every host. Which comparisons a step takes depends on the
seed and their number alone; how they are packed changes the order of additions and nothing else.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.packing.rows import pack


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """The plan of a run.

    Attributes:
      lengths: unique tokens of each comparison, int [n].
      readouts, edges: how many each comparison has, int [n].
      batch_size: comparisons a step, exactly; only a plan by epochs may end on a shorter step.
      num_steps: steps of the run.
      total: comparisons over all steps; beyond one epoch's n the order is drawn anew.
      row_length: tokens of a row.
      short_length: tokens to which a microbatch is cut whose rows all fit; 0: none is.
      microbatch_rows: rows of a microbatch, over all devices.
      seed: of the order; None keeps the data's own order (evaluation).
      mixture: (size, draws an epoch) of each source, in the data's order; () draws each comparison once an epoch.
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
        """Returns the indices of the comparisons of `step` (from 0), int64."""
        mixture = self.mixture or ((len(self.lengths), len(self.lengths)),)
        n = sum(draws for _, draws in mixture)
        first = step * self.batch_size
        last = min(first + self.batch_size, self.total)
        parts = []
        while first < last:
            epoch, offset = divmod(first, n)
            take = min(n - offset, last - first)
            parts.append(_order(self.seed, epoch, mixture)[offset : offset + take])
            first += take
        return np.concatenate(parts)

    def rows(self, step: int) -> list[list[int]]:
        """Returns the step's comparisons packed into rows, first-fit decreasing, and short rows last."""
        chosen = self.comparisons(step)
        packed = pack_for_step(self.lengths[chosen], self.row_length, self.short_length)
        return [[int(chosen[i]) for i in row] for row in packed]

    def microbatches(self, step: int) -> np.ndarray:
        """Returns how many microbatches the step's rows fill: before the first short one, and in all; int32 [2]."""
        return self.count(self.rows(step))

    def count(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns what `microbatches` does, of a step's rows."""
        return count_microbatches([self.lengths[row].sum() for row in rows], self.short_length, self.microbatch_rows)

    def slots(self, steps: Iterable[int]) -> int:
        """Returns the token slots that are computed in these steps."""
        counts = [self.microbatches(step) for step in steps]
        return _slots(counts, self.sizes.microbatches, self.row_length, self.short_length) * self.microbatch_rows

    @functools.cached_property
    def sizes(self) -> "PlanSizes":
        """Static sizes of the batch arrays and the cost of the plan, from one pass over all steps."""
        readouts = edges = tokens = 0
        counts = []
        for step in range(self.num_steps):
            rows = self.rows(step)
            counts.append(self.count(rows))
            readouts = max(readouts, *(int(self.readouts[row].sum()) for row in rows))
            edges = max(edges, *(int(self.edges[row].sum()) for row in rows))
            tokens += sum(int(self.lengths[row].sum()) for row in rows)
        most = int(np.max(counts))
        slots = _slots(counts, most, self.row_length, self.short_length) * self.microbatch_rows
        return PlanSizes(most, readouts, edges, tokens, slots)


@dataclasses.dataclass(frozen=True)
class PlanSizes:
    """Sizes over a whole plan.

    Attributes:
      microbatches: the most that a step needs.
      readouts, edges: of the largest tables of a row.
      tokens, slots: unique tokens, and the token slots that are computed for them.
    """

    microbatches: int
    readouts: int
    edges: int
    tokens: int
    slots: int

    @property
    def fill(self) -> float:
        """Share of the computed token slots that hold a token."""
        return self.tokens / max(self.slots, 1)


def short_row_length(row_length: int, multiple: int = 1) -> int:
    """Returns the length to which a microbatch is cut whose rows are half empty; 0: none is cut.

    A mesh with a sequence axis (`multiple` parts) would have to lay the row out anew, so nothing is cut there.
    """
    return row_length // 2 if multiple == 1 and row_length % 64 == 0 else 0


def pack_for_step(lengths: np.ndarray, row_length: int, short_length: int) -> list[list[int]]:
    """Returns rows of indices into `lengths`, first-fit decreasing; those that fit `short_length` come last."""
    return sorted(pack(lengths, row_length), key=lambda row: lengths[row].sum() <= short_length)


def count_microbatches(used: Sequence[int], short_length: int, microbatch_rows: int) -> np.ndarray:
    """Returns how many microbatches there are before the first in which all rows are short, and in all; int32 [2].

    Args:
      used: tokens in each row, short rows last.
    """
    return np.array(
        [
            math.ceil(sum(tokens > short_length for tokens in used) / microbatch_rows),
            math.ceil(len(used) / microbatch_rows),
        ],
        np.int32,
    )


def _slots(counts: Sequence[np.ndarray], most: int, row_length: int, short_length: int) -> int:
    """Returns the token slots of one row of every microbatch of these steps.

    Args:
      counts: of each step, see `count_microbatches`.
      most: microbatches of the plan's largest step; a plan with one a step cuts none.
    """
    whole, every = np.sum(counts, axis=0).tolist()
    cut = short_length if most > 1 else row_length
    return whole * row_length + (every - whole) * cut


@functools.lru_cache(maxsize=4)
def _order(seed: int | None, epoch: int, mixture: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Returns the comparisons of an epoch.

    Each source is an endless stream, one permutation of it after the other, of which an epoch takes the next `draws`:
    no comparison comes back before all others of its source have been seen.
    """
    if seed is None:
        return np.arange(sum(size for size, _ in mixture))
    parts, start = [], 0
    for source, (size, draws) in enumerate(mixture):
        first, last = epoch * draws, (epoch + 1) * draws
        stream = [_permutation(seed, n, source, size) for n in range(first // size, -(-last // size))]
        parts.append(start + np.concatenate(stream)[first % size :][:draws])
        start += size
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts)[_permutation(seed, epoch, len(parts), sum(map(len, parts)))]


def _permutation(seed: int, number: int, stream: int, n: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, number + (stream << 32)])).permutation(n)


def mix(sizes: Sequence[int], weights: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Returns (size, draws an epoch) of each source: an epoch is as long as all sources, shared out by weight.

    Raises:
      InputError: the weights do not fit the sources.
    """
    if len(weights) != len(sizes):
        raise InputError(
            f"config.data.weights has {len(weights)} entries, config.data.train {len(sizes)} sources; "
            "expected one a source"
        )
    if min(sizes) == 0:
        raise InputError(
            f"source {list(sizes).index(0) + 1} of config.data.train has no usable comparison; leave it "
            "and its weight out"
        )
    if min(weights) <= 0:
        raise InputError(f"config.data.weights holds {min(weights)}; expected more than 0: leave the source out")
    share = sum(sizes) / sum(weights)
    return tuple((size, max(1, round(weight * share))) for size, weight in zip(sizes, weights, strict=True))


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
    seed: int,
    mixture: tuple[tuple[int, int], ...] = (),
) -> BatchPlan:
    """Plans `steps` full steps, or `epochs` passes whose very last step may be short.

    Args:
      short_length: see `BatchPlan`; 0 for none.

    Raises:
      InputError: no comparisons, or not exactly one of steps and epochs.
    """
    if not len(lengths):
        raise InputError("the training data has no usable comparison left; see the counts above")
    if (steps > 0) == (epochs > 0):
        raise InputError(f"train.steps is {steps} and train.epochs is {epochs}; set exactly one of them")
    epoch = sum(draws for _, draws in mixture) or len(lengths)
    total = steps * batch_size if steps else max(1, round(epoch * epochs))
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
    """Plans one pass over all comparisons in their own order."""
    if not len(lengths):
        raise InputError("the validation data has no usable comparison left; see the counts above")
    steps = math.ceil(len(lengths) / batch_size)
    return BatchPlan(lengths, readouts, edges, batch_size, steps, len(lengths), row_length, 0, microbatch_rows, None)


def choose_row_length(
    lengths: np.ndarray, batch_size: int, microbatch_rows: int, multiple: int = 1, *, cut: bool = False
) -> int:
    """Returns the row length at which a step wastes the fewest token slots.

    Candidates are multiples of 64 (128 above 1,024) that hold the longest comparison, up to four times as long and at
    least up to 2,048; each is tried on up to 16 steps' worth of comparisons. Attention never costs what other groups in
    a row would, so the slots are the cost.

    Args:
      lengths: unique tokens of each comparison.
      batch_size: comparisons a step.
      microbatch_rows: rows are computed in multiples of this.
      multiple: the row length must also be divisible by this (the mesh's sequence axis).
      cut: whether the plan will have short microbatches (`short_row_length`).
    """
    longest = int(np.max(lengths))
    unit = math.lcm(64 if longest <= 1024 else 128, multiple)
    shortest = math.ceil(longest / unit) * unit
    order = _permutation(0, 0, 0, len(lengths))
    samples = [lengths[order[i : i + batch_size]] for i in range(0, min(len(order), 16 * batch_size), batch_size)]

    def slots(row_length: int) -> int:
        short = short_row_length(row_length, multiple) if cut else 0
        packed = [pack_for_step(sample, row_length, short) for sample in samples]
        used = [[sample[row].sum() for row in rows] for sample, rows in zip(samples, packed, strict=True)]
        counts = [count_microbatches(rows, short, microbatch_rows) for rows in used]
        return _slots(counts, int(np.max(counts)), row_length, short)

    candidates: Sequence[int] = range(shortest, max(4 * shortest, 2048) + 1, unit)
    return min(candidates, key=lambda row_length: (slots(row_length), row_length))
