"""Validation during training: the objective's metrics, ranking accuracy and label metrics, overall and by subset."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rmjax.data.packing.plan import BatchPlan
from rmjax.data.packing.rows import split_readouts
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.metrics.labels import label_metrics
from rmjax.metrics.ranking import ranking_accuracy_sums
from rmjax.metrics.subsets import subset_metrics
from rmjax.training.objectives import Objective


class Validation:
    """Accumulates the objective's sums and all rewards over one pass over a dataset."""

    def __init__(self, dataset: TokenizedDataset, plan: BatchPlan, objective: Objective):
        self._dataset, self._plan, self._objective = dataset, plan, objective
        self._sums: dict[str, Any] = {}
        self._rewards: dict[int, np.ndarray] = {}  # of each comparison, [R, A]

    def add(self, step: int, sums: dict[str, Any], rewards: np.ndarray) -> None:
        """Adds the results of a step: the objective's sums, and rewards float32 [M, B, R, A] at all readouts."""
        for name, pair in jax.device_get(sums).items():
            self._sums[name] = self._sums.get(name, 0.0) + np.asarray(pair, np.float64)
        flat = rewards.reshape(-1, *rewards.shape[2:])
        self._rewards |= split_readouts(flat, self._plan.rows(step), self._dataset.readout_counts)

    def metrics(self) -> dict[str, float]:
        """Returns the metrics of the whole dataset, and `SUBSET/METRIC` for each subset."""
        dataset = self._dataset
        metrics = self._objective.metrics(self._sums) | self._reward_metrics(range(len(dataset)))
        if not np.isnan(dataset.ceiling).any():
            metrics[self._objective.ceiling] = float(dataset.ceiling.mean(dtype=np.float64))
        return metrics | subset_metrics(dataset.subset_names, self._reward_metrics)

    def _reward_metrics(self, members: Sequence[int]) -> dict[str, float]:
        dataset, merge = self._dataset, np.asarray(self._objective.merge)
        all_edges = np.asarray(dataset.edges)
        correct = total = 0.0
        for i in members:
            edges = all_edges[dataset.edge_offsets[i] : dataset.edge_offsets[i + 1]]
            reward = self._rewards[i].astype(np.float64) @ merge
            margin = reward[edges["winner"]] - reward[edges["loser"]]
            sums = ranking_accuracy_sums(margin, edges["weight"].astype(np.float64), edges["target"])
            correct, total = correct + float(sums[0]), total + float(sums[1])
        metrics = {"accuracy": correct / total} if total else {}
        labels = [dataset.labels[dataset.readout_offsets[i] : dataset.readout_offsets[i + 1]] for i in members]
        rewards = [self._rewards[i] for i in members]
        return metrics | label_metrics(rewards, labels, dataset.attributes, steps=self._objective.step_metrics)
