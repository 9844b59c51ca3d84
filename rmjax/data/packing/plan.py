"""The batch plan: the comparisons of each step, their rows and microbatches.

The plan is a pure function of the seed and the token lengths, so every host computes the same one. The comparisons of a
step depend only on the seed and the number of comparisons; packing changes only the order of additions.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.core.text import count_of
from rmjax.data.packing.rows import pack


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
      seed: of the order; None keeps the dataset's order (evaluation).
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
        mixture = self.mixture or ((len(self.lengths), len(self.lengths)),)
        n = sum(draws for _, draws in mixture)
        first = step * self.batch_size
        last = min(first + self.batch_size, self.total)
        parts = []
        while first < last:
            epoch, offset = divmod(first, n)
            take = min(n - offset, last - first)
            parts.append(_epoch_order(self.seed, epoch, mixture)[offset : offset + take])
            first += take
        return np.concatenate(parts)

    def rows(self, step: int) -> list[list[int]]:
        """Returns the comparisons of each row of a step, packed first-fit decreasing, short rows last."""
        chosen = self.comparisons(step)
        packed = pack_for_step(self.lengths[chosen], self.row_length, self.short_length)
        return [[int(chosen[i]) for i in row] for row in packed]

    def microbatches(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns the number of full-length microbatches and of all microbatches of a step's rows, int32 [2]."""
        return count_microbatches(
            [int(self.lengths[row].sum()) for row in rows], self.short_length, self.microbatch_rows
        )

    def padded_tokens(self, steps: Iterable[int]) -> int:
        """Returns the number of tokens computed in these steps, padding included."""
        counts = [self.microbatches(self.rows(step)) for step in steps]
        tokens = _padded_tokens_per_row(counts, self.sizes.microbatches, self.row_length, self.short_length)
        return tokens * self.microbatch_rows

    @functools.cached_property
    def sizes(self) -> "PlanSizes":
        """Static sizes of the batch arrays and the cost of the plan, from one pass over all steps."""
        readouts = edges = tokens = 0
        counts = []
        for step in range(self.num_steps):
            rows = self.rows(step)
            counts.append(self.microbatches(rows))
            readouts = max(readouts, *(int(self.readouts[row].sum()) for row in rows))
            edges = max(edges, *(int(self.edges[row].sum()) for row in rows))
            tokens += sum(int(self.lengths[row].sum()) for row in rows)
        most = int(np.max(counts))
        padded = _padded_tokens_per_row(counts, most, self.row_length, self.short_length) * self.microbatch_rows
        return PlanSizes(most, readouts, edges, tokens, padded)


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


def pack_for_step(lengths: np.ndarray, row_length: int, short_length: int) -> list[list[int]]:
    """Returns rows of indices into `lengths`, first-fit decreasing; rows of at most `short_length` tokens last."""
    return sorted(pack(lengths, row_length), key=lambda row: lengths[row].sum() <= short_length)


def count_microbatches(used: Sequence[int], short_length: int, microbatch_rows: int) -> np.ndarray:
    """Returns the number of microbatches before the first one with short rows only, and of all, int32 [2].

    Args:
      used: tokens in each row, short rows last.
    """
    full_rows = sum(tokens > short_length for tokens in used)
    return np.array([math.ceil(full_rows / microbatch_rows), math.ceil(len(used) / microbatch_rows)], np.int32)


def _padded_tokens_per_row(counts: Sequence[np.ndarray], most: int, row_length: int, short_length: int) -> int:
    """Returns the sum of the microbatches' row lengths; a plan of at most one microbatch a step has no short ones."""
    full, total = np.sum(counts, axis=0).tolist()
    return full * row_length + (total - full) * (short_length if most > 1 else row_length)


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int | None, epoch: int, mixture: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Returns the comparisons of an epoch, int64 [sum of draws].

    Each source is an infinite stream of permutations, and an epoch takes the next `draws` of it: no comparison is
    repeated before all others of its source have been drawn.
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


def make_mixture(sizes: Sequence[int], weights: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Returns (size, draws an epoch) of each source; draws are proportional to `weights`, with the sum of the sizes.

    >>> make_mixture([100, 300], [1.0, 1.0])
    ((100, 200), (300, 200))

    Raises:
      InputError: there is not one positive weight per source, or a source is empty.
    """
    check_weights(weights, len(sizes))
    if min(sizes) == 0:
        raise InputError(
            f"source {list(sizes).index(0) + 1} of config.data.train has no usable comparison; remove it and its weight"
        )
    share = sum(sizes) / sum(weights)
    return tuple((size, max(1, round(weight * share))) for size, weight in zip(sizes, weights, strict=True))


def check_weights(weights: Sequence[float], num_sources: int) -> None:
    """Raises InputError unless there is one positive weight per source."""
    if len(weights) != num_sources:
        raise InputError(
            f"config.data.weights has {count_of(len(weights), 'entry', 'entries')}, config.data.train "
            f"{count_of(num_sources, 'source')}; expected one a source"
        )
    if min(weights) <= 0:
        raise InputError(f"config.data.weights holds {min(weights)}; expected more than 0: remove the source")


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
    order = _permutation(0, 0, 0, len(lengths))
    samples = [lengths[order[i : i + batch_size]] for i in range(0, min(len(order), 16 * batch_size), batch_size)]

    def cost(row_length: int) -> int:
        short = short_row_length(row_length, multiple) if short_microbatches else 0
        packed = [pack_for_step(sample, row_length, short) for sample in samples]
        used = [[sample[row].sum() for row in rows] for sample, rows in zip(samples, packed, strict=True)]
        counts = [count_microbatches(rows, short, microbatch_rows) for rows in used]
        return _padded_tokens_per_row(counts, int(np.max(counts)), row_length, short)

    candidates = range(shortest, max(4 * shortest, 2048) + 1, unit)
    return min(candidates, key=lambda row_length: (cost(row_length), row_length))
