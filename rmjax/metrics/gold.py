"""Gold values of a comparison's responses, recovered from its edges.

Axis letters: K responses.
"""

from collections.abc import Sequence

import numpy as np

from rmjax.data.schema import Edge


def gold_values(edges: Sequence[Edge], count: int) -> np.ndarray | None:
    """Returns values [K] of which the edges are the differences or the order, the lowest 0; None if there are none.

    The edges must be a whole ranking, ties allowed: an edge for each two responses but those that are tied. If the
    edges' margins are differences of values (of ratings or ranks), these are the values; else the
    numbers of different levels below.

    >>> gold_values([Edge(0, 1, 2.0), Edge(0, 2, 3.0), Edge(1, 2, 1.0)], 3).tolist()
    [3.0, 1.0, 0.0]
    >>> gold_values([Edge(0, 1), Edge(2, 1)], 3).tolist()
    [1.0, 0.0, 1.0]
    >>> gold_values([Edge(0, 1)], 3)
    """
    better = np.zeros((count, count), bool)
    margin = np.zeros((count, count))
    for edge in edges:
        if edge.target != 0.5:
            better[edge.winner, edge.loser] = True
            margin[edge.winner, edge.loser] = edge.margin
    lead = better.sum(1) - better.sum(0)  # equal for tied responses, and larger for better ones, if it is a ranking
    if not better.any() or not np.array_equal(better, lead[:, None] > lead):
        return None
    values = np.unique(lead, return_inverse=True)[1].astype(np.float64)
    worst = int(np.argmin(values))
    rated = margin[:, worst]
    differences = rated[:, None] - rated
    if margin[better].min() > 0 and np.allclose(differences[better], margin[better], rtol=1e-6, atol=1e-9):
        return rated
    return values
