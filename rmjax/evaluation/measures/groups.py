"""Groups of numbers: by value where these are few, else by quantiles.

Axis letters: E edges.
"""

import itertools

import numpy as np

_FEW = 6  # different values that are groups of their own
_QUANTILES = 5


def group_by_value(values: np.ndarray, *, integer: bool = False) -> list[tuple[str, np.ndarray]]:
    """Returns (name, members bool [E]) of groups in rising order: of each value, or of five quantiles if many.

    NaN values are in no group; quantile groups hold nearly equal numbers, and equal values share a group.

    >>> [(name, int(members.sum())) for name, members in group_by_value(np.array([1.0, 2.5, 1.0]))]
    [('1', 2), ('2.5', 1)]
    """
    known = values[~np.isnan(values)]
    unique = np.unique(known)
    if len(unique) <= _FEW:
        return [(f"{value:.4g}", values == value) for value in unique]
    bounds = np.unique(np.quantile(known, np.linspace(0, 1, _QUANTILES + 1), method="lower"))
    found = []
    for i, (low, high) in enumerate(itertools.pairwise(bounds)):
        last = i == len(bounds) - 2
        members = (values >= low) & (values <= high if last else values < high)
        top = unique[unique <= high][-1] if last else unique[unique < high][-1]
        text = (f"{low:.0f}", f"{top:.0f}") if integer else (f"{low:.4g}", f"{top:.4g}")
        found.append((f"{text[0]} to {text[1]}", members))
    return found
