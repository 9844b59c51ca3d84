"""ProcessBench (Zheng et al. 2024, arXiv 2412.06559): the first wrong step of a solution.

Axis letters: n tasks, S resamples, C candidates of the threshold.
"""

from collections.abc import Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.records.fields import BadField, number
from rmjax.data.schema import Record
from rmjax.evaluation.suites.suite import Published, Statistic, Suite, Task, average, divide, field, members

SUBSETS = {"gsm8k": 400, "math": 1000, "olympiadbench": 1000, "omnimath": 1000}
_TUNED = "gsm8k"  # the subset on which the threshold is chosen


def _part(record: Record, source: str) -> str:
    steps = record.get("steps")
    if not isinstance(steps, list) or number(record.get("label"), "label") not in range(-1, len(steps)):
        raise BadField("label is not -1 or the index of a step in steps")
    subset = field(record, "id").rpartition("-")[0]
    if subset not in SUBSETS:
        raise BadField(f"id is {record['id']!r:.60}; expected SUBSET-NUMBER with {', '.join(SUBSETS)}")
    return subset


def predictions(rewards: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Returns the index of the first step whose reward is not above each threshold, or -1: int64 [C].

    A step that could not be scored is above none and below none: -2, which is no label.

    >>> predictions(np.array([2.0, 0.0, 1.0]), np.array([-1.0, 0.0, 1.5, 2.0])).tolist()
    [-1, 1, 1, 0]
    """
    if np.isnan(rewards).any():
        return np.full(len(thresholds), -2)
    lowest = np.minimum.accumulate(rewards)  # falling: the first step at or below t is the first lowest at or below t
    found = np.searchsorted(-lowest, -thresholds, side="left")
    return np.where(found < len(rewards), found, -1)


def candidates(rewards: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the thresholds with different predictions, rising, float64 [C]: between the lowest rewards so far.

    >>> candidates([np.array([1.0, 2.0]), np.array([3.0])]).tolist()
    [0.0, 2.0, 3.0]
    """
    known = [np.minimum.accumulate(each) for each in rewards if not np.isnan(each).any()]
    values = np.unique(np.concatenate(known)) if known else np.zeros(1)
    return np.concatenate([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:]])


def _f1(weights: np.ndarray, hits: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns F1, accuracy of solutions with and without an error, [S, C], of hits [m, C] of the tasks `rows` [m]."""
    shares = []
    for wrong in (labels != -1, labels == -1):
        chosen = weights[:, rows[wrong]]
        shares.append(
            divide(chosen @ hits[wrong], np.broadcast_to(chosen.sum(1)[:, None], (len(weights), hits.shape[1])))
        )
    error, correct = shares
    both = error + correct
    return np.where(both == 0, 0.0, divide(2 * error * correct, both)), error, correct


def _rule(tasks: Sequence[Task], threshold: float | None) -> Statistic:
    index = {name: members(tasks, name) for name in SUBSETS}
    if threshold is None and not len(index[_TUNED]):
        raise InputError(
            f"processbench: the threshold is chosen on {_TUNED}, which the data lacks; add it, or give --threshold "
            "(0 for a model trained with cross-entropy)"
        )
    rewards = [task.rewards for task in tasks]
    given = candidates([rewards[i] for i in index[_TUNED]]) if threshold is None else np.array([threshold])
    labels = {name: np.array([int(tasks[i].record["label"]) for i in rows]) for name, rows in index.items()}
    hits = {
        name: np.stack([predictions(rewards[i], given) for i in rows]) == labels[name][:, None]
        for name, rows in index.items()
        if len(rows)
    }

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = {name: _f1(weights, hits[name].astype(np.float64), labels[name], index[name]) for name in hits}
        best = np.zeros(len(weights), np.int64)
        if threshold is None:
            best = np.argmax(np.nan_to_num(values[_TUNED][0], nan=-1.0), axis=1)  # the lowest of equally good ones
        at = lambda array: array[np.arange(len(weights)), best]
        found = {name: at(parts[0]) for name, parts in values.items()}
        parts = {
            f"{name}/{kind}": at(array)
            for name, each in values.items()
            for kind, array in zip(("error_accuracy", "correct_accuracy"), each[1:], strict=True)
        }
        return {"score": average([*found.values()])} | found | parts | {"threshold": given[best]}

    return compute


PROCESSBENCH = Suite(
    name="processbench",
    title="ProcessBench",
    published=tuple(Published(name, f"Qwen/ProcessBench:{name}", count) for name, count in SUBSETS.items()),
    format=lambda record: "processbench",
    part=_part,
    published_set=lambda part: part,
    rule=_rule,
    sections={"score": "Mean F1"} | {name: name for name in SUBSETS} | {"threshold": "Threshold"},
    description=(
        "The predicted first wrong step is the first whose reward is not above the threshold, or none. The F1 of a "
        "subset is the harmonic mean of two accuracies: of solutions with an error, whose step must be met exactly, "
        "and of solutions without. The score is the mean of the four F1. The threshold is the one with the highest "
        "F1 on gsm8k, chosen again in each resample, unless --threshold gives it."
    ),
    differences=(
        "Generative and two-class models stop at the first step that they call wrong, which is the threshold 0 of a "
        "reward trained with cross-entropy (--threshold=0); the threshold chosen on gsm8k is for models with scores.",
        "F1 is not defined there if both accuracies are 0; here it is 0.",
        "Where a step's reward is read, and the text between steps, are the model's training options here "
        "(data.step_separator, data.step_readout), not a template of the benchmark.",
        "A solution longer than max_length is not scored here, and counts as missed.",
    ),
    steps=True,
)
