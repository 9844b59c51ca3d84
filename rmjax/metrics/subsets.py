"""Metrics by subset of a dataset."""

import itertools
from collections.abc import Callable, Sequence


def subsets(names: Sequence[str]) -> dict[str, list[int]]:
    """Returns the indices of the comparisons in each subset, by its name.

    Args:
      names: of each comparison, as in `Comparison.subset`; `set/part` also belongs to `set`, "" to no subset.

    >>> subsets(["math/easy", "", "math/hard"])
    {'math': [0, 2], 'math/easy': [0], 'math/hard': [2]}
    """
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        for whole in itertools.accumulate(filter(None, name.split("/")), "{}/{}".format):
            found.setdefault(whole, []).append(i)
    return dict(sorted(found.items()))


def subset_metrics(names: Sequence[str], compute: Callable[[list[int]], dict[str, float]]) -> dict[str, float]:
    """Returns `SUBSET/METRIC` for each subset; `compute` returns the metrics of the comparisons with these indices."""
    found = {subset: compute(members) for subset, members in subsets(names).items()}
    return {f"{subset}/{name}": value for subset, metrics in found.items() for name, value in metrics.items()}
