"""What an evaluation reports of the standard deviations of rewards."""

import numpy as np

from rmjax.core.sections import Measured, Section, metric_table
from rmjax.evaluation.rewards import std_of
from rmjax.evaluation.scores import Scores
from rmjax.metrics.bootstrap import Bootstrap
from rmjax.metrics.edges import edge_table
from rmjax.metrics.uncertainty import uncertainty_metrics

_TEXT = (
    "The standard deviation of a reward is the disagreement of the head's members, or that of a Laplace approximation. "
    "A pair is confident if its margin exceeds the sum of both responses' standard deviations. Bound calibration is 0 "
    "where the bounds of the probability hold. The areas under the ROC curve tell how well disagreement, the margin "
    "and their ratio predict wrongly ordered pairs; 0.5 is chance."
)


def measure_uncertainty(scores: Scores, merge: np.ndarray) -> Measured:
    """Returns the metrics `uncertainty/NAME` of `uncertainty_metrics`; none if the rewards have no `reward_std`.

    Args:
      scores: of the comparisons that have edges.
      merge: float [A], the weights of the attributes in the merged reward, whose standard deviation is taken to be the
        sum of the attributes', weighted by their absolute values: the largest possible one.
    """
    stds = [std_of(rewards) for rewards in scores.rewards]
    if not stds or any(std is None for std in stds):
        return Measured({})
    edges = [comparison.edges for comparison in scores.comparisons]
    table = edge_table(scores.merged, edges)
    merged = [std @ np.abs(merge) for std in stds if std is not None]
    std = np.array([merged[i][ends] for i, ends in zip(table.comparison, table.ends, strict=True)], np.float64)
    found = uncertainty_metrics(table, std, Bootstrap(scores.prompts[table.comparison]))
    shown = metric_table("Uncertainty", found)
    metrics = {f"uncertainty/{name}": value for name, value in found.items()}
    return Measured(metrics, (Section("Uncertainty", _TEXT, (shown,)),))
