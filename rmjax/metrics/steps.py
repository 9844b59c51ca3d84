"""Accuracy and area under the ROC curve of the steps of a process.

Axis letters: N labelled steps.
"""

import numpy as np
import scipy.stats


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
