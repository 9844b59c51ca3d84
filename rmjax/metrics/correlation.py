"""Correlations and areas under the ROC curve of weighted rows, and rank correlations within prompts; float64.

Axis letters: N rows, S resamples (`bootstrap`), K responses of a prompt, n prompts.
"""

from collections.abc import Callable, Sequence

import numpy as np

_BLOCK = 1 << 22  # numbers of an array [prompts, K, K]


class Ranks:
    """Values [N], sorted once, for midranks (ties share their mean rank) under many weightings."""

    def __init__(self, values: np.ndarray):
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        new = np.ones(len(values), bool)
        new[1:] = ordered[1:] != ordered[:-1]
        self._starts, self._group = np.flatnonzero(new), np.empty(len(values), np.int64)
        self._group[self._order] = np.cumsum(new) - 1

    def sums(self, weights: np.ndarray) -> np.ndarray:
        """Returns the weight of each different value, in rising order: [S, values] of weights [S, N]."""
        return np.add.reduceat(weights[:, self._order], self._starts, axis=1)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Returns the midranks [S, N] of the rows, each repeated as often as its weight in [S, N] says."""
        sums = self.sums(weights)
        return (np.cumsum(sums, axis=1) - (sums - 1) / 2)[:, self._group]


def pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the correlation coefficients [S] of x and y, [N] or [S, N], with weights [S, N]; 0 with a constant."""
    total = weights.sum(axis=1, keepdims=True)
    x, y = x - x[..., :1], y - y[..., :1]  # so that a constant becomes 0 exactly
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    sum_of = lambda values: (weights * values).sum(axis=1)
    scale = np.sqrt(sum_of(x * x) * sum_of(y * y))
    return np.divide(sum_of(x * y), scale, out=np.zeros_like(scale), where=scale > 0)


def spearman(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from weights [S, N] to rank correlations [S] of x and y [N]."""
    rank_x, rank_y = Ranks(x), Ranks(y)
    return lambda weights: pearson(rank_x(weights), rank_y(weights), weights)


def auc(scores: np.ndarray, positive: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from weights [S, N] to areas under the ROC curve [S]; NaN without one of the classes.

    The area is the probability that a positive row has a higher score than a negative one; ties count half.

    Args:
      scores, positive: [N], numbers and bools.
    """
    ranks = Ranks(scores)

    def compute(weights: np.ndarray) -> np.ndarray:
        above, below = ranks.sums(weights * positive), ranks.sums(weights * ~positive)
        wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
        pairs = above.sum(axis=1) * below.sum(axis=1)
        return np.divide(wins, pairs, out=np.full_like(wins, np.nan), where=pairs > 0)

    return compute


def _by_size(
    x: Sequence[np.ndarray], y: Sequence[np.ndarray], compute: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Returns `compute` of prompts' x and y, stacked to [n, K] for prompts of one size K; float64 [n]."""
    sizes, found = np.array([len(each) for each in x], np.int64), np.full(len(x), np.nan)
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        block = max(1, _BLOCK // int(size) ** 2)
        for part in np.split(members, range(block, len(members), block)):
            found[part] = compute(np.stack([x[i] for i in part]), np.stack([y[i] for i in part]))
    return found


def kendall_within(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> np.ndarray:
    """Returns Kendall's tau-b of each prompt's x and y [K], float64 [n].

    tau_b = (C - D) / sqrt(P_x · P_y) with C concordant and D discordant pairs, and P the number of pairs that are not
    tied (Kendall 1945). NaN if all of y are tied; 0 if all of x are.
    """

    def compute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        pairs = np.triu_indices(a.shape[1], 1)
        sign_a, sign_b = (np.sign(each[:, pairs[0]] - each[:, pairs[1]]) for each in (a, b))
        return _ratio((sign_a * sign_b).sum(1), np.abs(sign_a).sum(1), np.abs(sign_b).sum(1))

    return _by_size(x, y, compute)


def spearman_within(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> np.ndarray:
    """Returns Spearman's rank correlation of each prompt's x and y [K], float64 [n]: NaN and 0 as `kendall_within`."""

    def centered(values: np.ndarray) -> np.ndarray:
        # The midrank less its mean is half the number of smaller values less that of larger ones.
        return np.sign(values[:, :, None] - values[:, None, :]).sum(2) / 2

    def compute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = centered(a), centered(b)
        return _ratio((a * b).sum(1), (a * a).sum(1), (b * b).sum(1))

    return _by_size(x, y, compute)


def _ratio(product: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    scale = np.sqrt(x * y)
    found = np.divide(product, scale, out=np.zeros(len(product)), where=scale > 0)
    return np.where(y > 0, found, np.nan)
