"""How rewards agree with labels: of attributes, and of steps. In float64 on the host.

Axis letters: N labelled readouts, A attributes.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import scipy.stats


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


def label_metrics(rewards: np.ndarray, labels: np.ndarray, attributes: Sequence[str]) -> dict[str, float]:
    """Returns `mse/<attribute>`, `pearson/<attribute>`, `spearman/<attribute>`, and the mean of each over attributes.

    An attribute without labels is left out; a correlation of what does not vary is 0.

    Args:
      rewards, labels: [N, A]; NaN labels are missing.
    """
    found: dict[str, list[float]] = {"mse": [], "pearson": [], "spearman": []}
    metrics = {}
    for a, name in enumerate(attributes):
        known = ~np.isnan(labels[:, a])
        if not known.any():
            continue
        x, y = rewards[known, a].astype(np.float64), labels[known, a].astype(np.float64)
        values = {
            "mse": float(np.mean(np.square(x - y))),
            "pearson": _correlation(x, y),
            "spearman": _correlation(scipy.stats.rankdata(x), scipy.stats.rankdata(y)),
        }
        for kind, value in values.items():
            found[kind].append(value)
            metrics[f"{kind}/{name}"] = value
    return {kind: float(np.mean(values)) for kind, values in found.items() if values} | metrics


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return float(np.sum(x * y) / scale) if scale > 0 else 0.0


def step_metrics(rewards: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns `accuracy` of the steps' rewards and `auc`, the probability that a right step has more than a wrong one.

    A reward above 0 says right; 0 itself counts half, and so do equal rewards in `auc`, which is left out where all
    steps are alike. Steps that are not judged (NaN), and neutral ones (0.5), count for neither.

    Args:
      rewards, labels: [N]; labels 1 right, 0 wrong.
    """
    known = ~np.isnan(labels) & (labels != 0.5)
    rewards, right = rewards[known].astype(np.float64), labels[known] > 0.5
    if not len(rewards):
        return {}
    metrics = {"accuracy": float(np.mean(0.5 + 0.5 * np.sign(rewards) * np.where(right, 1, -1)))}
    positive, negative = int(right.sum()), int((~right).sum())
    if positive and negative:
        ranks = scipy.stats.rankdata(rewards)
        metrics["auc"] = float((ranks[right].sum() - positive * (positive + 1) / 2) / (positive * negative))
    return metrics
