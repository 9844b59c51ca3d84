"""The Laplace approximation of a linear reward head on its features, without retraining.

Axis letters: N readouts, E edges, D features.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.records.formats import Item
from rmjax.data.schema import Comparison, Tree
from rmjax.data.tokens.rendering import make_trees
from rmjax.evaluation.pipeline import RewardPipeline
from rmjax.evaluation.scoring import Scorer
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import Params, RewardModel

_PRECISIONS = np.logspace(-4, 6, 41)  # of the prior, among which the evidence chooses


@dataclasses.dataclass(frozen=True)
class Posterior:
    """A normal distribution of the head's weights around the trained ones, with the covariance L Lᵀ.

    Attributes:
      factor: L, float64 [D, D].
      center: the mean features m, float64 [D]: a reward's standard deviation is that of its distance from the mean
        reward, since preferences leave the reward of m undetermined. It is zero where labels are predicted.
      precision: of the prior.
    """

    factor: np.ndarray
    center: np.ndarray
    precision: float

    def std(self, features: np.ndarray) -> np.ndarray:
        """Returns the standard deviations |Lᵀ (x - m)| [...] of the rewards of features [..., D]."""
        return np.linalg.norm((features - self.center) @ self.factor, axis=-1)

    def difference_std(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Returns the standard deviations |Lᵀ (x - y)| [...] of the differences of the rewards of features [..., D]."""
        return np.linalg.norm((first - second) @ self.factor, axis=-1)


@dataclasses.dataclass(frozen=True)
class _Features:
    """The features of a model in the place of its rewards, for a scorer."""

    whole: RewardModel

    @property
    def decoder(self) -> DecoderConfig:
        return self.whole.decoder

    @property
    def head(self) -> HeadConfig:
        return HeadConfig(tuple(map(str, range(self.whole.decoder.hidden_size))))

    def rewards(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        return self.whole.features(params, batch).astype(jnp.float32)


def read_features(pipeline: RewardPipeline, items: Sequence[Item]) -> tuple[list[Comparison], list[np.ndarray]]:
    """Returns the comparisons that can be scored, and the features float64 [R, D] that the head reads of each."""
    scorer = pipeline.scorer
    model: RewardModel = _Features(scorer.model)  # type: ignore[assignment]
    computer = Scorer(model, scorer.params, scorer._mesh, scorer.row_length, scorer.rows)
    comparisons = [item for item in items if isinstance(item, Comparison)]
    made = zip(comparisons, make_trees(comparisons, pipeline.tokenizer, max_length=pipeline.max_length), strict=True)
    usable = [(one, tree) for one, tree in made if isinstance(tree, Tree) and tree.longest <= pipeline.max_length]
    found = computer.score([tree for _, tree in usable])
    return [one for one, _ in usable], [np.asarray(values, np.float64) for values in found]


def fit(comparisons: Sequence[Comparison], features: Sequence[np.ndarray], weights: np.ndarray) -> Posterior:
    """Returns the posterior of the weights of a linear head, trained by preferences or, without any, by one label.

    Its precision is H + λ I with H = sum_e v p (1 - p) d dᵀ for edges of weight v with d = x_w - x_l and
    p = sigmoid(w · d), the Hessian of the Bradley-Terry loss, or H = sum x xᵀ / s² with the variance s² of the errors
    of labels. λ maximizes the evidence at the trained weights,
    D/2 log λ - λ/2 |w|² - 1/2 log det(H + λ I).

    Args:
      weights: w, float64 [D], the scale of the head included.

    Raises:
      InputError: there is no preference and no label.

    Source: MacKay 1992, "A practical Bayesian framework for backpropagation networks"; Daxberger et al. 2021, "Laplace
    Redux" (arXiv 2106.14806), of the last layer.
    """
    rows = [
        (x[edge.winner] - x[edge.loser], edge.weight)
        for one, x in zip(comparisons, features, strict=True)
        for edge in one.edges
        if edge.target != 0.5
    ]
    size = len(weights)
    center = np.zeros(size)
    if rows:
        d, v = np.stack([row for row, _ in rows]), np.array([weight for _, weight in rows])
        p = 1 / (1 + np.exp(-np.clip(d @ weights, -500, 500)))
        hessian = (d * (v * p * (1 - p))[:, None]).T @ d
        center = np.concatenate(features).mean(axis=0)
    else:
        known = [(x, one.labels[:, 0]) for one, x in zip(comparisons, features, strict=True) if one.labels is not None]
        if not known:
            raise InputError("--laplace: the data has no preference and no label; expected one of them")
        x, y = (np.concatenate(parts) for parts in zip(*known, strict=True))
        x, y = x[~np.isnan(y)], y[~np.isnan(y)]
        error = y - x @ weights
        hessian = x.T @ x / max(float(error.var()), 1e-12)
    values, vectors = np.linalg.eigh(hessian)
    values = np.maximum(values, 0)
    log_det = np.log(values[None] + _PRECISIONS[:, None]).sum(axis=1)
    evidence = size * np.log(_PRECISIONS) - _PRECISIONS * (weights @ weights) - log_det
    precision = float(_PRECISIONS[int(np.argmax(evidence))])
    return Posterior(vectors / np.sqrt(values + precision), center, precision)
