"""The worst mistakes on preferences, and labels that a confident model contradicts."""

from typing import Any

import numpy as np
import scipy.special

from rmjax.core.sections import Section
from rmjax.evaluation.measures.texts import edge_example
from rmjax.evaluation.pipeline import json_record
from rmjax.evaluation.scores import Scores
from rmjax.metrics.edges import edge_table

_EXAMPLES = 20
_DOUBT = 0.1  # probability of the label below which it is suspicious


def worst_mistakes(scores: Scores) -> Section:
    """Returns the section with the edges whose margins are the most negative, one per comparison.

    Args:
      scores: of the comparisons that have edges.
    """
    table = edge_table(scores.merged, [comparison.edges for comparison in scores.comparisons])
    order = np.argsort(table.margin, kind="stable")
    wrong = order[table.margin[order] < 0]
    _, first = np.unique(table.comparison[wrong], return_index=True)
    examples = tuple(
        edge_example(
            scores,
            int(table.comparison[edge]),
            table.ends[edge],
            f"margin {table.margin[edge]:.4f}: {scores.comparisons[table.comparison[edge]].where}",
        )
        for edge in wrong[np.sort(first)][:_EXAMPLES]
    )
    share = np.mean(table.margin < 0)
    text = f"{len(wrong):,} of {len(order):,} edges ({share:.1%}) have the higher reward at the response labeled worse."
    return Section("Worst mistakes", text, examples=examples)


def suspicious_labels(scores: Scores, temperature: float) -> list[dict[str, Any]]:
    """Returns the labels to check, the least probable first: records with a preference of probability below 0.1.

    The probability is sigmoid(margin / temperature), of the label by the model, calibrated on the same data. Each entry
    holds the record, its place `where`, `edge` [winner, loser] as indices of its responses, `rewards`, `margin` and
    `probability` of its most improbable edge.

    Args:
      scores: of the comparisons that have edges.
    """
    table = edge_table(scores.merged, [comparison.edges for comparison in scores.comparisons])
    probability = scipy.special.expit(table.margin / temperature)
    found: dict[int, dict[str, Any]] = {}
    for edge in np.argsort(probability, kind="stable"):
        index = int(table.comparison[edge])
        if probability[edge] >= _DOUBT:
            break
        if index not in found:
            comparison = scores.comparisons[index]
            found[index] = {
                "where": comparison.where,
                "probability": float(probability[edge]),
                "margin": float(table.margin[edge]),
                "edge": table.ends[edge].tolist(),
                "rewards": scores.merged[index].tolist(),
                "record": json_record(comparison.record),
            }
    return list(found.values())
