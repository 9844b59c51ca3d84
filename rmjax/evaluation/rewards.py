"""Rewards with their standard deviations, as a scorer returns them.

Axis letters: R readouts, A attributes.
"""

from typing import Any

import numpy as np


# A subclass of arrays, and not a pair of arrays, since the many callers that need rewards alone take them as they are:
# measures, suites, calibration, and what users do with scores. Only those that report deviations know of the attribute.
class Rewards(np.ndarray):
    """Rewards float32 [R, A], with `reward_std` float32 [R, A] if the model's head is uncertain, else None.

    Results of NumPy's operations, slices included, have no `reward_std`: it belongs to these rewards alone.
    """

    reward_std: np.ndarray | None

    def __array_finalize__(self, source: Any) -> None:
        self.reward_std = None


def make_rewards(values: np.ndarray, attributes: int, uncertain: bool) -> Rewards:
    """Returns the rewards of `values`, [R, A], or of an uncertain head [R, 2 A]: rewards, then standard deviations."""
    rewards = np.array(values[:, :attributes]).view(Rewards)  # a copy: arrays of JAX are read-only
    rewards.reward_std = np.ascontiguousarray(values[:, attributes:]) if uncertain else None
    return rewards


def std_of(rewards: np.ndarray) -> np.ndarray | None:
    """Returns the standard deviations float32 [R, A] of rewards that a scorer returned; None if they are not known."""
    return getattr(rewards, "reward_std", None)


def with_std(rewards: np.ndarray) -> np.ndarray:
    """Returns rewards [R, A] as an array, followed by their standard deviations, [R, 2 A], if these are known."""
    std = std_of(rewards)
    return np.asarray(rewards) if std is None else np.hstack([rewards, std])
