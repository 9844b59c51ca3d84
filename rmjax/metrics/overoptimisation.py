"""Gold reward as a function of the distance from the base policy, in the forms of Gao et al. 2022 (arXiv 2210.10760).

d = sqrt(KL(policy || base policy)), in sqrt(nats); R(d) is the mean gold reward minus that of the base policy.

* best-of-n: R(d) = d (α - β d)
* reinforcement learning: R(d) = d (α - β log d)

Axis letters: P points of a curve.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from rmjax.core.errors import InputError

Form = Literal["best_of_n", "rl"]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted curve: coefficients, their standard errors, and R² = 1 - SS_residual / SS_total.

    The standard errors are those of least squares with independent errors; neighbouring points of a curve share samples
    and a proxy, so they are lower bounds.
    """

    form: Form
    alpha: float
    beta: float
    alpha_error: float
    beta_error: float
    r_squared: float

    def __call__(self, distances: np.ndarray) -> np.ndarray:
        """Returns the fitted gold rewards, float64 [P], at distances [P]."""
        return _basis(self.form, distances) @ np.array([self.alpha, self.beta])

    @property
    def peak(self) -> float:
        """Distance with the highest fitted gold reward: α / (2 β), or exp(α / β - 1); inf if the curve only rises.

        >>> Fit("best_of_n", 4.0, 1.0, 0.0, 0.0, 1.0).peak
        2.0
        """
        if self.beta <= 0:
            return math.inf
        if self.form == "best_of_n":
            return max(self.alpha / (2 * self.beta), 0.0)
        exponent = self.alpha / self.beta - 1
        return math.exp(exponent) if exponent < 700 else math.inf  # exp overflows above 709


def best_of_n_distance(sizes: Sequence[int]) -> np.ndarray:
    """Returns sqrt(log n - (n - 1) / n) for each n of `sizes`, float64 [P].

    log n - (n - 1) / n is an upper bound of the KL (Beirami et al., arXiv 2401.01879); Gao et al. use it as the KL.

    Raises:
      InputError: an n is below 1.

    >>> best_of_n_distance([1, 4]).round(3).tolist()
    [0.0, 0.798]
    """
    n = np.asarray(sizes, np.float64)
    if n.size and n.min() < 1:
        raise InputError(f"best of {n.min():g} responses; expected 1 or more")
    return np.sqrt(np.maximum(np.log(n) - (n - 1) / n, 0))


def fit(form: Form, distances: np.ndarray, rewards: np.ndarray) -> Fit:
    """Returns the least-squares fit of α and β, both of which enter linearly.

    Args:
      form: `best_of_n` or `rl`.
      distances: d [P], 0 or more; points at 0, where both forms are 0, do not change the coefficients.
      rewards: R [P].

    Raises:
      InputError: the form is unknown, a value is not finite, a distance is negative, or fewer than 3 different
        distances are above 0.
    """
    if form not in ("best_of_n", "rl"):
        raise InputError(f"form is {form!r}; expected 'best_of_n' or 'rl'")
    d, r = np.asarray(distances, np.float64), np.asarray(rewards, np.float64)
    if d.ndim != 1 or d.shape != r.shape:
        raise InputError(f"distances {d.shape} and rewards {r.shape}; expected two arrays [P] of one length")
    if not (np.isfinite(d).all() and np.isfinite(r).all() and (d >= 0).all()):
        raise InputError("distances and rewards must be finite, and distances 0 or more")
    if (found := len(np.unique(d[d > 0]))) < 3:
        raise InputError(f"{found} different distances above 0; a fit of two coefficients needs at least 3")
    basis = _basis(form, d)
    alpha, beta = np.linalg.lstsq(basis, r, rcond=None)[0].tolist()
    residual = float(((r - basis @ np.array([alpha, beta])) ** 2).sum())
    used = int((d > 0).sum())
    alpha_error, beta_error = np.sqrt(np.diag(np.linalg.inv(basis.T @ basis)) * residual / (used - 2)).tolist()
    total = float(((r - r.mean()) ** 2).sum())
    r_squared = 1 - residual / total if total > 0 else math.nan
    return Fit(form, alpha, beta, alpha_error, beta_error, r_squared)


def _basis(form: Form, distances: np.ndarray) -> np.ndarray:
    """Returns the factors of α and β, float64 [P, 2]."""
    d = np.asarray(distances, np.float64)
    factor = d if form == "best_of_n" else np.log(np.where(d > 0, d, 1.0))
    return np.stack([d, -d * factor], axis=1)
