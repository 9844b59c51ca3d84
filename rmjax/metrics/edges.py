"""Preference edges with the rewards of their responses.

Axis letters: K responses of a comparison, E edges of all comparisons.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.schema import Edge


@dataclasses.dataclass(frozen=True)
class EdgeTable:
    """Edges of comparisons with the rewards at their ends.

    Attributes:
      winner, loser: rewards, float64 [E].
      weight, target, label_margin, strength: of the edges, as in `Edge`, float64 [E].
      comparison: index of the comparison, int64 [E].
      ends: indices of winner and loser within the comparison, int64 [E, 2].
    """

    winner: np.ndarray
    loser: np.ndarray
    weight: np.ndarray
    target: np.ndarray
    comparison: np.ndarray
    label_margin: np.ndarray
    strength: np.ndarray
    ends: np.ndarray

    @property
    def margin(self) -> np.ndarray:
        """r_w - r_l, float64 [E]."""
        return self.winner - self.loser


def edge_table(rewards: Sequence[np.ndarray], edges: Sequence[Sequence[Edge]]) -> EdgeTable:
    """Returns the edges of comparisons, without ties of the data (target 0.5).

    Args:
      rewards, edges: of each comparison: rewards [K], and edges between its K responses.

    Raises:
      InputError: there is no edge.
    """
    rows = [
        (
            *(values[edge.winner], values[edge.loser], edge.weight, edge.target, i),
            *(edge.margin, edge.strength, edge.winner, edge.loser),
        )
        for i, (values, known) in enumerate(zip(rewards, edges, strict=True))
        for edge in known
        if edge.target != 0.5
    ]
    if not rows:
        raise InputError("no scored comparison has a known preference; expected chosen and rejected responses")
    columns = np.array(rows, np.float64).T
    winner, loser, weight, target, comparison, label_margin, strength = columns[:7]
    ends = columns[7:].T.astype(np.int64)
    return EdgeTable(winner, loser, weight, target, comparison.astype(np.int64), label_margin, strength, ends)
