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
    """Rewards `winner` and `loser`, `weight` and `target` of edges, float64 [E]; index of `comparison`, int64 [E]."""

    winner: np.ndarray
    loser: np.ndarray
    weight: np.ndarray
    target: np.ndarray
    comparison: np.ndarray

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
        (values[edge.winner], values[edge.loser], edge.weight, edge.target, i)
        for i, (values, known) in enumerate(zip(rewards, edges, strict=True))
        for edge in known
        if edge.target != 0.5
    ]
    if not rows:
        raise InputError("no scored comparison has a known preference; expected chosen and rejected responses")
    winner, loser, weight, target, comparison = np.array(rows, np.float64).T
    return EdgeTable(winner, loser, weight, target, comparison.astype(np.int64))
