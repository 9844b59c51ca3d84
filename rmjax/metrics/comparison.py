"""Two models on the same data: differences of metrics; of preferences also agreement and McNemar's test.

Axis letters: E edges.
"""

import numpy as np
import scipy.stats

from rmjax.core.errors import InputError
from rmjax.metrics.bootstrap import Bootstrap, Samples, intervals, with_interval
from rmjax.metrics.edges import EdgeTable
from rmjax.metrics.ranking import correctness


def mcnemar(first_only: int, second_only: int) -> float:
    """Returns the exact two-sided p-value of McNemar's test (1947): binomial, with probability 0.5 for either count.

    Args:
      first_only, second_only: numbers of cases that one model alone has right.

    >>> mcnemar(1, 5)
    0.21875
    """
    count = first_only + second_only
    return float(scipy.stats.binomtest(first_only, count).pvalue) if count else 1.0


def compare_edges(first: EdgeTable, second: EdgeTable, prompts: np.ndarray) -> dict[str, float]:
    """Returns metrics of a first and a second model on the same edges.

    `accuracy`, `accuracy_other`: of the first and the second model. `accuracy_difference`: first less second. Their
    intervals are paired: each resample of prompts is the same for both models. `mcnemar_p`: over prompts, of which one
    counts for the model that has more of its edges right, by weight; prompts with as much right count for neither.
    `both_right`, `only_first_right`, `only_second_right`, `both_wrong`: numbers of edges; equal rewards are wrong.
    `agreement`: share of the edges, by weight, that both models order alike.

    Args:
      first, second: tables of the same edges [E].
      prompts: int [E].

    Raises:
      InputError: the edges differ.
    """
    same = ("comparison", "ends", "weight", "target")
    if not all(np.array_equal(getattr(first, name), getattr(second, name)) for name in same):
        raise InputError("the edges of the two models differ; expected the same data and data options")
    weight, one, other = first.weight, correctness(first.margin), correctness(second.margin)
    agree = np.sign(first.margin) == np.sign(second.margin)
    bootstrap = Bootstrap(prompts)
    found: dict[str, float] = {}
    values = {"accuracy": one, "accuracy_other": other, "accuracy_difference": one - other, "agreement": agree}
    for name, each in values.items():
        mean = (weight * each).sum() / weight.sum()
        found |= with_interval(name, mean, bootstrap.ratio(weight * each, weight))
    lead = np.bincount(bootstrap.index, weight * (one - other))
    # Weights of 1 / (number of edges) leave sums of equal results near 1e-17.
    found["mcnemar_p"] = mcnemar(int((lead > 1e-9).sum()), int((lead < -1e-9).sum()))
    right, other_right = first.margin > 0, second.margin > 0
    found["both_right"] = int((right & other_right).sum())
    found["only_first_right"] = int((right & ~other_right).sum())
    found["only_second_right"] = int((~right & other_right).sum())
    found["both_wrong"] = int((~right & ~other_right).sum())
    return found


def compare_samples(first: Samples, second: Samples) -> dict[str, float]:
    """Returns NAME, NAME_other and NAME_difference (first less second) of the metrics of both models, with intervals.

    Args:
      first, second: on the same resamples, so that the intervals of differences are paired.

    >>> one, other = (0.5, np.array([0.4, 0.6])), (0.25, np.array([0.15, 0.35]))
    >>> compare_samples({"mse": one, "auc": one}, {"mse": other})["mse_difference_high"]
    0.25
    """
    found: dict[str, float] = {}
    for name in first:
        if name in second:
            (one, samples), (other, others) = first[name], second[name]
            parts = {name: (one, samples), f"{name}_other": (other, others)}
            found |= intervals(parts | {f"{name}_difference": (one - other, samples - others)})
    return found
