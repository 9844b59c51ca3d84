"""Preference edges with the rewards of their responses.

Axis letters: C comparisons, E edges of all comparisons.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.schema import Edge


@dataclasses.dataclass(frozen=True)
class EdgeTable:
    """Every edge with the rewards at its ends: float64 [E], but `comparison` int64 [E], the edge's comparison."""

    winner: np.ndarray
    loser: np.ndarray
    weight: np.ndarray
    target: np.ndarray
    comparison: np.ndarray

    @property
    def margin(self) -> np.ndarray:
        """r_w - r_l, float64 [E]."""
        return self.winner - self.loser

    @property
    def correct(self) -> np.ndarray:
        """1 where the winner has the higher reward, 0.5 for a tie, else 0; float64 [E]."""
        return 0.5 + 0.5 * np.sign(self.margin)


def edge_table(rewards: Sequence[np.ndarray], edges: Sequence[Sequence[Edge]]) -> EdgeTable:
    """Gathers the edges of C comparisons.

    Args:
      rewards: of each comparison, [K].
      edges: of each comparison, over its K responses; ties of the data (target 0.5) are left out.

    Raises:
      InputError: there is no edge at all.
    """
    rows = [
        (values[edge.winner], values[edge.loser], edge.weight, edge.target, i)
        for i, (values, known) in enumerate(zip(rewards, edges, strict=True))
        for edge in known
        if edge.target != 0.5
    ]
    if not rows:
        raise InputError(
            "no comparison that could be scored has a known preference; evaluate needs data with chosen "
            "and rejected (for unlabelled data use rmjax.score)"
        )
    table = np.array(rows, np.float64)
    return EdgeTable(*table[:, :4].T, table[:, 4].astype(np.int64))
