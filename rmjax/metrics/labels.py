"""Agreement of rewards with labels of attributes, and of the steps of a process; float64 on the host.

Axis letters: R readouts of a comparison, N readouts of all comparisons, A attributes.
"""

from collections.abc import Sequence

import numpy as np
import scipy.stats

from rmjax.metrics.ranking import correctness


def label_metrics(
    rewards: Sequence[np.ndarray], labels: Sequence[np.ndarray], attributes: Sequence[str], *, steps: bool
) -> dict[str, float]:
    """Returns `step_metrics` (of the first attribute) if the readouts are steps, else `attribute_metrics`.

    Args:
      rewards, labels: of each comparison, [R, A]; NaN labels are missing.
    """
    if not rewards:
        return {}
    x, y = np.concatenate(rewards), np.concatenate(labels)
    return step_metrics(x[:, 0], y[:, 0]) if steps else attribute_metrics(x, y, attributes)


def attribute_metrics(rewards: np.ndarray, labels: np.ndarray, attributes: Sequence[str]) -> dict[str, float]:
    """Returns `mse/<attribute>`, `pearson/<attribute>`, `spearman/<attribute>`, and the mean of each over attributes.

    An attribute without labels is omitted; the correlation with a constant is 0.

    Args:
      rewards, labels: [N, A]; NaN labels are missing.
    """
    metrics = {}
    for a, name in enumerate(attributes):
        known = ~np.isnan(labels[:, a])
        if known.any():
            x, y = rewards[known, a].astype(np.float64), labels[known, a].astype(np.float64)
            metrics[f"mse/{name}"] = float(np.mean(np.square(x - y)))
            metrics[f"pearson/{name}"] = _correlation(x, y)
            metrics[f"spearman/{name}"] = _correlation(scipy.stats.rankdata(x), scipy.stats.rankdata(y))
    mean = lambda kind: float(np.mean([value for key, value in metrics.items() if key.startswith(f"{kind}/")]))
    return {kind: mean(kind) for kind in ("mse", "pearson", "spearman") if metrics} | metrics


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return float(np.sum(x * y) / scale) if scale > 0 else 0.0


def step_metrics(rewards: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns `accuracy` and `auc`, the area under the ROC curve (omitted if all labels are equal), of process steps.

    A reward above 0 predicts a right step; rewards of 0 count 0.5 in the accuracy, and equal rewards in the AUC.

    Args:
      rewards, labels: [N]; labels are 1 (right), 0 (wrong), or 0.5 (neutral) and NaN (missing), which are excluded.
    """
    known = ~np.isnan(labels) & (labels != 0.5)
    rewards, right = rewards[known].astype(np.float64), labels[known] > 0.5
    if not len(rewards):
        return {}
    metrics = {"accuracy": float(np.mean(correctness(rewards * np.where(right, 1, -1))))}
    positive, negative = int(right.sum()), int((~right).sum())
    if positive and negative:
        ranks = scipy.stats.rankdata(rewards)
        metrics["auc"] = float((ranks[right].sum() - positive * (positive + 1) / 2) / (positive * negative))
    return metrics
