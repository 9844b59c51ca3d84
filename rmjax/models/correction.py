"""Corrections of a reward that a linear head cannot hold: of its dependence on length, and of its scale by a curve.

They are stored in rmjax.json and applied to the one reward of a model after the head's scale and shift.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmjax.core.errors import InputError

KEY = "correction"  # in rmjax.json
_NAMES = ("length", "isotonic")


@dataclasses.dataclass(frozen=True)
class Correction:
    """Piecewise linear curves, each as its points ((x, y), …) with x ascending, constant beyond the ends; (): none.

    Attributes:
      length: what is subtracted, by the number of tokens of the conversation.
      isotonic: the corrected reward, by the reward after the subtraction; y does not descend.
    """

    length: tuple[tuple[float, float], ...] = ()
    isotonic: tuple[tuple[float, float], ...] = ()

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "Correction | None":
        """Returns the correction in the contents of rmjax.json; None if there is none.

        Raises:
          InputError: it is not a correction of this version.
        """
        if not (values := metadata.get(KEY)):
            return None
        try:
            curves = {name: tuple((float(x), float(y)) for x, y in points) for name, points in values.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"rmjax.json: {KEY} is not an object of curves ({error}); calibrate again") from error
        for name, points in curves.items():
            if name not in _NAMES or any(a >= b for (a, _), (b, _) in itertools.pairwise(points)):
                raise InputError(f"rmjax.json: {KEY}.{name} is not one of {', '.join(_NAMES)} with ascending x")
        return cls(**curves)

    def to_json(self) -> dict[str, list[list[float]]]:
        """Returns the curves that are there, for the key `KEY` of rmjax.json."""
        return {name: [list(point) for point in getattr(self, name)] for name in _NAMES if getattr(self, name)}

    def __call__(self, rewards: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Returns the corrected rewards float32, of the same shape as `rewards` and `tokens`."""
        values = rewards.astype(np.float64)
        if self.length:
            values = values - np.interp(tokens, *np.array(self.length).T)
        if self.isotonic:
            values = np.interp(values, *np.array(self.isotonic).T)
        return values.astype(np.float32)
