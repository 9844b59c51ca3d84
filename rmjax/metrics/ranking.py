"""Ranking accuracy, for NumPy arrays and, under `jax.jit` too, JAX arrays."""

from typing import TypeVar

import jax
import numpy as np

Array = TypeVar("Array", np.ndarray, jax.Array)


def correctness(margin: Array) -> Array:
    """Returns 1 for positive margins r_w - r_l, 0 for negative ones and 0.5 for ties of the rewards.

    >>> correctness(np.array([2.0, 0.0, -1.0])).tolist()
    [1.0, 0.5, 0.0]
    """
    return 0.5 + 0.5 * margin.__array_namespace__().sign(margin)


def ranking_accuracy_sums(margin: Array, weight: Array, target: Array) -> tuple[Array, Array]:
    """Returns (weighted sum of `correctness`, sum of weights); ranking accuracy is their ratio.

    Args:
      margin, weight, target: r_w - r_l, `Edge.weight` and `Edge.target` of edges, float arrays of one shape. Ties of
        the data (target 0.5) have no correct order and are excluded from both sums.
    """
    xp = margin.__array_namespace__()
    weight = xp.where(target == 0.5, 0.0, weight)
    return xp.sum(weight * correctness(margin)), xp.sum(weight)
