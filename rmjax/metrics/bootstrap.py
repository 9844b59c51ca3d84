"""Bootstrap intervals over prompts: clusters of rows are resampled, since the rows of a prompt are not independent.

Axis letters: N rows (pairs, responses or steps), C clusters (prompts), S resamples, M columns.

A resample draws C clusters with replacement. It is held as counts [S, C], how often each cluster was drawn, so a
statistic of a resample is the statistic of the rows with these weights: exactly that of the rows repeated as often. An
interval runs from the 2.5 to the 97.5 percentile of the statistic over the resamples
(Efron and Tibshirani 1993, chapter 13).
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from rmjax.core.errors import InputError

Interval = tuple[float, float]  # lower and upper bound
Samples = dict[str, tuple[float, np.ndarray]]  # metric: its value, and its values on the resamples [S]
RESAMPLES = 1000  # the standard error of a bound is then a few percent of the interval
_BLOCK = 1 << 22  # numbers of a block of weights: 32 MiB in float64


class Bootstrap:
    """Resamples of clustered rows; equal arguments give equal resamples.

    Args:
      clusters: [N], the cluster of each row: any values that can be sorted.
      resamples: S.
      seed: of the resamples.

    Raises:
      InputError: there is no row.

    >>> right = np.array([1.0, 1.0, 0.0, 1.0])
    >>> Bootstrap(["a", "a", "b", "c"]).ratio(right, np.ones(4))
    (0.0, 1.0)
    """

    def __init__(self, clusters: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0):
        values = np.asarray(clusters)
        if not values.size:
            raise InputError("bootstrap of no rows; expected at least one")
        _, self.index = np.unique(values, return_inverse=True)  # of each row's cluster
        self.clusters, self._resamples, self._seed = int(self.index.max()) + 1, resamples, seed

    def _counts(self) -> Iterator[np.ndarray]:
        """Yields blocks of counts, float64 [resamples of the block, C]."""
        rng, left = np.random.default_rng(self._seed), self._resamples
        block = max(1, _BLOCK // max(self.clusters, len(self.index)))
        while left > 0:
            size = min(block, left)
            drawn = rng.integers(self.clusters, size=(size, self.clusters))
            drawn += self.clusters * np.arange(size)[:, None]
            yield np.bincount(drawn.ravel(), minlength=size * self.clusters).reshape(size, -1).astype(np.float64)
            left -= size

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Returns the sums of columns over the rows of each resample, float64 [S, M], of values [N, M]."""
        by_cluster = np.stack([np.bincount(self.index, column, self.clusters) for column in values.T], 1)
        return np.concatenate([counts @ by_cluster for counts in self._counts()])

    def of_sums(self, values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
        """Returns the interval of a function of column sums: `statistic` maps sums [S, M] to [S]."""
        return percentiles(statistic(self.sums(values)))

    def ratio(self, numerator: np.ndarray, denominator: np.ndarray) -> Interval:
        """Returns the interval of sum(numerator) / sum(denominator), both [N]; a mean with weights as denominator."""
        return self.ratios(numerator[:, None], denominator[:, None])[0]

    def ratios(self, numerators: np.ndarray, denominators: np.ndarray) -> list[Interval]:
        """Returns the interval of the ratio of the sums of each pair of columns, both [N, M]."""
        sums = self.sums(np.concatenate([numerators, denominators], 1))
        count = numerators.shape[1]
        with np.errstate(invalid="ignore", divide="ignore"):
            values = sums[:, :count] / sums[:, count:]
        return [percentiles(column) for column in values.T]

    def samples(self, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Returns any weighted statistic of the resamples [S]: `statistic` maps weights of the rows [S, N] to [S]."""
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample may have no row that counts
            return np.concatenate([statistic(counts[:, self.index]) for counts in self._counts()])


def percentiles(values: np.ndarray) -> Interval:
    """Returns the 2.5 and the 97.5 percentile of values [S] without those that are not finite; NaN if none is."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [2.5, 97.5]) if len(finite) else (np.nan, np.nan)
    return float(low), float(high)


def with_interval(name: str, value: float, interval: Interval) -> dict[str, float]:
    """Returns `name`, `name_low` and `name_high`; without numbers that are not finite, which JSON cannot hold.

    >>> with_interval("accuracy", 0.5, (0.25, 0.75))
    {'accuracy': 0.5, 'accuracy_low': 0.25, 'accuracy_high': 0.75}
    """
    found = {name: float(value), f"{name}_low": interval[0], f"{name}_high": interval[1]}
    return {key: number for key, number in found.items() if np.isfinite(number)}


def intervals(samples: Samples) -> dict[str, float]:
    """Returns the metrics with `NAME_low` and `NAME_high`, as `with_interval`.

    >>> intervals({"accuracy": (0.5, np.array([0.5, 0.5, 0.5])), "auc": (np.nan, np.array([np.nan]))})
    {'accuracy': 0.5, 'accuracy_low': 0.5, 'accuracy_high': 0.5}
    """
    found: dict[str, float] = {}
    for name, (value, values) in samples.items():
        found |= with_interval(name, value, percentiles(values))
    return found
