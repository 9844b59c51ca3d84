"""Validation during training: the objective's loss, and how the rewards agree with what is known, by subset too."""

from typing import Any

import jax
import numpy as np

from rmjax.data.packing.plan import BatchPlan
from rmjax.data.packing.rows import split_readouts
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.metrics.attributes import label_metrics
from rmjax.metrics.steps import step_metrics
from rmjax.metrics.subsets import subsets
from rmjax.training.objectives import Objective


class Validation:
    """Gathers a pass over a dataset: sums of the objective and the rewards at every readout."""

    def __init__(self, dataset: TokenizedDataset, plan: BatchPlan, objective: Objective):
        self._dataset, self._plan, self._objective = dataset, plan, objective
        self._sums: dict[str, Any] = {}
        self._rewards: dict[int, np.ndarray] = {}

    def add(self, step: int, sums: dict[str, Any], rewards: np.ndarray) -> None:
        """Takes one step.

        Args:
          sums: the objective's.
          rewards: float32 [M, B, R, A].
        """
        for name, pair in jax.device_get(sums).items():
            self._sums[name] = self._sums.get(name, 0.0) + np.asarray(pair, np.float64)
        flat = rewards.reshape(-1, *rewards.shape[2:])
        self._rewards |= split_readouts(flat, self._plan.rows(step), self._dataset.readout_counts)

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of the whole set: sums divided once, and `SUBSET/METRIC` of each subset."""
        dataset = self._dataset
        found = self._objective.values(self._sums)
        found |= self._agreement(range(len(dataset)))
        if not np.isnan(dataset.ceiling).any():
            best = "mse_floor" if "regression" in self._objective.terms else "accuracy_ceiling"
            found[best] = float(dataset.ceiling.mean(dtype=np.float64))
        for name, members in subsets(dataset.subset).items():
            found |= {f"{name}/{metric}": value for metric, value in self._agreement(members).items()}
        return found

    def _agreement(self, members: Any) -> dict[str, float]:
        dataset = self._dataset
        cut = lambda array, offsets, i: array[offsets[i] : offsets[i + 1]]
        edges = [(i, cut(dataset.edges, dataset.edge_offsets, i)) for i in members]
        found = self._ranking([(i, table) for i, table in edges if len(table)])
        labels = np.concatenate([cut(dataset.labels, dataset.readout_offsets, i) for i in members])
        if labels.size and not np.isnan(labels).all():
            rewards = np.concatenate([self._rewards[i] for i in members])
            if "process" in self._objective.terms:
                found |= step_metrics(rewards[:, 0], labels[:, 0])
            else:
                found |= label_metrics(rewards, labels, dataset.attributes)
        return found

    def _ranking(self, edges: list[tuple[int, np.ndarray]]) -> dict[str, float]:
        """Accuracy over edges with their weights; a tie of rewards counts half, one of the data is left out."""
        right = total = 0.0
        for i, table in edges:
            reward = self._rewards[i].astype(np.float64) @ np.asarray(self._objective.merge)
            winner, loser, weight, target = table[:, 0].astype(int), table[:, 1].astype(int), table[:, 3], table[:, 5]
            weight = np.where(target == 0.5, 0.0, weight).astype(np.float64)
            right += float(np.sum(weight * (0.5 + 0.5 * np.sign(reward[winner] - reward[loser]))))
            total += float(np.sum(weight))
        return {"accuracy": right / total} if total else {}
