"""How rewards agree with labels: of attributes, and of steps. In float64 on the host.

Axis letters: N labelled readouts, A attributes.
"""

from collections.abc import Sequence

import numpy as np
import scipy.stats


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
