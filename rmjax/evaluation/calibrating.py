"""Calibration after training: temperature, mean, length and isotonic corrections, fitted and cross-validated.

Axis letters: n comparisons, R readouts, E edges.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.optimize

from rmjax.core.errors import InputError
from rmjax.core.progress import progress_bar
from rmjax.data.records.formats import Item
from rmjax.data.schema import Comparison
from rmjax.evaluation.pipeline import RewardPipeline, score_chunks
from rmjax.evaluation.scores import clusters, prompt_text
from rmjax.metrics.bootstrap import Bootstrap, with_interval
from rmjax.metrics.calibration import fit_temperature
from rmjax.metrics.edges import edge_table
from rmjax.metrics.lowess import lowess
from rmjax.metrics.pairs import pair_metrics
from rmjax.models.correction import Correction

_FOLDS = 5
_SHOWN = ("accuracy", "loss", "calibration_error")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The reward r becomes c((r - length(tokens)) / temperature - mean), with the isotonic curve c.

    Attributes:
      length: points of the curve in units of the original reward; (): none.
      isotonic: points of c; (): none.
      std: standard deviation of the calibrated rewards on the data; it is stored, not applied, since it would undo the
        temperature.
    """

    temperature: float = 1.0
    mean: float = 0.0
    std: float = 0.0
    length: tuple[tuple[float, float], ...] = ()
    isotonic: tuple[tuple[float, float], ...] = ()

    @property
    def correction(self) -> Correction:
        """What is applied after scale 1 / temperature and shift -mean of the head."""
        scaled = tuple((tokens, value / self.temperature) for tokens, value in self.length)
        return Correction(scaled, self.isotonic)

    def __call__(self, rewards: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Returns calibrated rewards, float32 of the shape of `rewards` and `tokens`."""
        return self.correction(rewards / self.temperature - self.mean, tokens)


@dataclasses.dataclass(frozen=True)
class ScoredData:
    """Comparisons with rewards and tokens: those of the n-th are `rewards[n]` [R] and `tokens[n]` [R]."""

    comparisons: list[Comparison]
    rewards: list[np.ndarray]
    tokens: list[np.ndarray]
    clusters: np.ndarray  # int64 [n]; those with the same prompt are equal

    def select(self, members: np.ndarray) -> "ScoredData":
        """Returns the comparisons with these indices."""
        pick = lambda values: [values[i] for i in members]
        return ScoredData(pick(self.comparisons), pick(self.rewards), pick(self.tokens), self.clusters[members])


def score(pipeline: RewardPipeline, items: Sequence[Item], *, progress: bool = False) -> ScoredData:
    """Returns the items that can be scored, with their rewards and the tokens of their conversations.

    Raises:
      InputError: the model has several rewards or a correction, or nothing could be scored.
    """
    if len(pipeline.attributes) != 1:
        names = ", ".join(pipeline.attributes)
        raise InputError(f"the model has the rewards {names}; merge them into one before: rmjax.export --merge")
    if pipeline.scorer.correction is not None:
        raise InputError("the model has a correction already; calibrate the one that it was made from")
    comparisons, rewards, tokens = [], [], []
    lengths: list[np.ndarray | None] = []
    with progress_bar(len(items), "scoring", "record", disable=not progress) as bar:
        pairs = [pair for chunk in score_chunks(pipeline, items, bar, None, lengths) for pair in chunk]
    for (item, found), length in zip(pairs, lengths, strict=True):
        if isinstance(item, Comparison) and not isinstance(found, str) and length is not None:
            comparisons.append(item)
            rewards.append(np.asarray(found)[:, 0].astype(np.float64))
            tokens.append(length if len(length) == len(found) else np.full(len(found), length[0]))
    if not comparisons:
        raise InputError("no record could be scored; expected labelled data of the model's format")
    return ScoredData(comparisons, rewards, tokens, clusters([prompt_text(one) for one in comparisons]))


def fit(data: ScoredData, *, length: bool = False, isotonic: bool = False) -> Calibration:
    """Returns the calibration that fits `data` best.

    The temperature minimizes the loss of the preferences (1 without any). The length curve is the LOWESS of rewards on
    the tokens of the conversations (arXiv 2409.17407), less its mean. The isotonic curve is the least squares fit of
    the labels.

    Raises:
      InputError: the data has no labels or preferences, or not those that a part needs.
    """
    rewards, tokens = np.concatenate(data.rewards), np.concatenate(data.tokens)
    labels = _labels(data)
    preferences = any(edge.target != 0.5 for one in data.comparisons for edge in one.edges)
    if not preferences and labels is None:
        raise InputError("the data has no preference and no label of the one reward; expected one of them")
    curve: tuple[tuple[float, float], ...] = ()
    if length:
        if any(one.steps for one in data.comparisons):
            raise InputError("--length: rewards of steps are not corrected for length; remove it")
        x, y = lowess(tokens, rewards)
        y = y - np.interp(tokens, x, y).mean()
        curve = tuple(zip(x.tolist(), y.tolist(), strict=True))
    found = Calibration(length=curve)
    if preferences:
        table = edge_table([found(r, t) for r, t in zip(data.rewards, data.tokens, strict=True)], _edges(data))
        temperature = fit_temperature(table.margin, table.target, table.weight)
        found = dataclasses.replace(found, temperature=temperature)
    found = dataclasses.replace(found, mean=float(found(rewards, tokens).mean()))
    if isotonic:
        if labels is None:
            raise InputError(
                "--isotonic: the data has preferences alone, and a curve of single rewards cannot be fitted to them; "
                "remove it (the temperature is fitted), or give data with a label of each response or step"
            )
        values, known = found(rewards, tokens), ~np.isnan(labels)
        x, index = np.unique(values[known], return_inverse=True)
        weight = np.bincount(index)
        y = scipy.optimize.isotonic_regression(np.bincount(index, labels[known]) / weight, weights=weight).x
        found = dataclasses.replace(found, isotonic=tuple(zip(x.tolist(), y.tolist(), strict=True)))
    return dataclasses.replace(found, std=float(found(rewards, tokens).std()))


def cross_validate(data: ScoredData, *, length: bool = False, isotonic: bool = False) -> dict[str, dict[str, float]]:
    """Returns the metrics with intervals `before` and `after` a calibration that was fitted on other prompts.

    Each comparison is calibrated by a fit on the four of five folds of prompts that do not hold it.

    Raises:
      InputError: there are fewer than five prompts; see also `fit`.
    """
    _, index = np.unique(data.clusters, return_inverse=True)
    if (count := int(index.max()) + 1) < _FOLDS:
        raise InputError(f"the data has {count} prompts; expected at least {_FOLDS}, for cross-validation")
    fold = np.random.default_rng(0).permutation(count)[index] % _FOLDS
    after = list(data.rewards)
    for k in range(_FOLDS):
        found = fit(data.select(np.flatnonzero(fold != k)), length=length, isotonic=isotonic)
        for i in np.flatnonzero(fold == k):
            after[i] = found(data.rewards[i], data.tokens[i]).astype(np.float64)
    return {"before": _metrics(data), "after": _metrics(dataclasses.replace(data, rewards=after))}


def _metrics(data: ScoredData) -> dict[str, float]:
    """Returns metrics of preferences and labels, and the correlation of reward and tokens, with intervals."""
    found: dict[str, float] = {}
    ranked = [i for i, one in enumerate(data.comparisons) if any(edge.target != 0.5 for edge in one.edges)]
    if ranked:
        chosen = data.select(np.array(ranked))
        ceilings = [one.ceiling for one in chosen.comparisons]
        pairs = pair_metrics(chosen.rewards, _edges(chosen), ceilings, chosen.clusters.tolist())
        names = [f"{name}{end}" for name in _SHOWN for end in ("", "_low", "_high")]
        found |= {name: pairs[name] for name in names if name in pairs}
    of_readouts = Bootstrap(np.repeat(data.clusters, [len(rewards) for rewards in data.rewards]))
    rewards, tokens, labels = np.concatenate(data.rewards), np.concatenate(data.tokens), _labels(data)
    if labels is not None:
        known = ~np.isnan(labels)
        error = np.where(known, np.square(rewards - np.where(known, labels, 0)), 0.0)
        found |= with_interval("mse", error.sum() / known.sum(), of_readouts.ratio(error, known.astype(np.float64)))
    if rewards.std() > 0 and tokens.std() > 0:
        found["reward_length_pearson"] = float(np.corrcoef(rewards, tokens)[0, 1])
    return found


def _edges(data: ScoredData) -> list:
    return [comparison.edges for comparison in data.comparisons]


def _labels(data: ScoredData) -> np.ndarray | None:
    """Returns the labels of all readouts [sum of R], NaN where missing; None if the data has not one label each."""
    columns = [
        np.full(len(rewards), np.nan)
        if one.labels is None or one.labels.shape[1] != 1
        else np.asarray(one.labels, np.float64)[:, 0]
        for one, rewards in zip(data.comparisons, data.rewards, strict=True)
    ]
    labels = np.concatenate(columns)
    return None if np.isnan(labels).all() else labels
