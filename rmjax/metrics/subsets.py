"""Subsets of a dataset under which metrics are reported too."""

import itertools
from collections.abc import Sequence


def subsets(names: Sequence[str]) -> dict[str, list[int]]:
    """Returns which comparisons each subset holds: `set/part` belongs to `set` too; no name belongs to none.

    Args:
      names: of each comparison, as in `Comparison.subset`.
    """
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        for whole in itertools.accumulate(filter(None, name.split("/")), "{}/{}".format):
            found.setdefault(whole, []).append(i)
    return dict(sorted(found.items()))
