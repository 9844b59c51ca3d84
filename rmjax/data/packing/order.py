"""The order of the comparisons: a permutation for every epoch, and mixtures of several sources."""

import functools
from collections.abc import Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.core.text import count_of


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int | None, epoch: int, mixture: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Returns the comparisons of an epoch, int64 [sum of draws].

    Each source is an infinite stream of permutations, and an epoch takes the next `draws` of it: no comparison is
    repeated before all others of its source have been drawn.
    """
    if seed is None:
        return np.arange(sum(size for size, _ in mixture))
    parts, start = [], 0
    for source, (size, draws) in enumerate(mixture):
        first, last = epoch * draws, (epoch + 1) * draws
        stream = [permutation(seed, n, source, size) for n in range(first // size, -(-last // size))]
        parts.append(start + np.concatenate(stream)[first % size :][:draws])
        start += size
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts)[permutation(seed, epoch, len(parts), sum(map(len, parts)))]


def permutation(seed: int, number: int, stream: int, n: int) -> np.ndarray:
    """Returns permutation `number` of a stream of permutations of n comparisons, int64 [n]."""
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
