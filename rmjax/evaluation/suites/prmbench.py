"""PRMBench (Song et al. 2025, arXiv 2501.03124): right and wrong steps, by class of error.

Axis letters: n tasks, S resamples.
"""

from collections.abc import Sequence

import numpy as np

from rmjax.data.records.fields import BadField
from rmjax.data.schema import Record
from rmjax.evaluation.suites.suite import (
    Published,
    Statistic,
    Suite,
    Task,
    average,
    choose,
    divide,
    field,
    members,
    ratio_of,
)

CLASSES = (  # the spelling is the data's
    *("redundency", "circular", "counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    *("missing_condition", "deception", "multi_solutions"),
)
CORRECT = "correct"  # made from the original solutions of the class `redundency`, and not part of the score
_ORIGINALS = "redundency"
_GROUPS = {
    "simplicity": ("redundency", "circular"),
    "soundness": ("counterfactual", "step_contradiction", "domain_inconsistency", "confidence"),
    "sensitivity": ("missing_condition", "deception", "multi_solutions"),
}


def _expand(record: Record) -> list[Record]:
    """Returns the record, and of the class `redundency` also its original solution, all of whose steps are correct."""
    if record.get("classification") != _ORIGINALS or not record.get("original_process"):
        return [record]
    original = {
        "idx": record.get("idx"),
        "modified_question": record.get("original_question"),
        "modified_process": record["original_process"],
        "error_steps": [],
        "classification": CORRECT,
    }
    return [record, original]


def _part(record: Record, source: str) -> str:
    errors = record.get("error_steps")
    if not isinstance(errors, list) or not all(isinstance(step, int) and step > 0 for step in errors):
        raise BadField("error_steps is not a list of step numbers, from 1")
    return choose(field(record, "classification"), {name: name for name in (*CLASSES, CORRECT)}, "classification")


def step_counts(rewards: np.ndarray, errors: Sequence[int], threshold: float) -> tuple[int, int, int, int]:
    """Returns the numbers of steps (TP, FP, FN, TN), with correct steps as positive class.

    A step is predicted to be correct if its reward is above the threshold. No step counts if one could not be scored.

    Args:
      rewards: [R].
      errors: numbers of the wrong steps, from 1.

    >>> step_counts(np.array([1.0, 1.0, -1.0, -1.0]), [2, 3], 0.0)
    (1, 1, 1, 1)
    """
    if np.isnan(rewards).any():
        return 0, 0, 0, 0
    said = rewards > threshold
    right = ~np.isin(np.arange(1, len(rewards) + 1), np.asarray(errors, np.int64))
    counts = [(said & right).sum(), (said & ~right).sum(), (~said & right).sum(), (~said & ~right).sum()]
    return tuple(map(int, counts))  # type: ignore[return-value]


def _scores(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns PRMScore, F1 and negative F1 [S] of counts (TP, FP, FN, TN) [S, 4]; NaN without a step."""
    hit, mistaken, missed, rejected = counts.T
    known = counts.sum(1) > 0
    share = lambda hits: np.where(known, np.nan_to_num(divide(2 * hits, 2 * hits + mistaken + missed)), np.nan)
    f1, negative = share(hit), share(rejected)
    return 0.5 * f1 + 0.5 * negative, f1, negative


def _first_error(task: Task, threshold: float) -> float:
    """Returns 1 if the first wrong step is predicted to be wrong, else 0; NaN without one, or without rewards."""
    errors = task.record["error_steps"]
    if not errors or np.isnan(task.rewards).any() or min(errors) > len(task.rewards):
        return float("nan")
    return float(task.rewards[min(errors) - 1] <= threshold)


def _rule(tasks: Sequence[Task], threshold: float | None) -> Statistic:
    at = threshold or 0.0
    counts = np.array([step_counts(task.rewards, task.record["error_steps"], at) for task in tasks], np.float64)
    first = np.array([_first_error(task, at) for task in tasks])
    index = {name: members(tasks, name) for name in (*CLASSES, CORRECT)}
    pooled = np.array([i for i, task in enumerate(tasks) if task.part != CORRECT], np.int64)
    known = pooled[~np.isnan(first[pooled])]

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        sums = {name: weights[:, rows] @ counts[rows] for name, rows in index.items()}
        total = weights[:, pooled] @ counts[pooled]
        score, f1, negative = _scores(total)
        found = {"score": score, "f1": f1, "negative_f1": negative}
        classes: dict[str, np.ndarray] = {}
        for name in CLASSES:
            both, positive, _ = _scores(sums[name])
            has_errors = (counts[index[name]][:, [1, 3]] > 0).any()
            classes[name] = both if has_errors else positive  # a class without wrong steps has no negative F1
        groups = {group: average([classes[name] for name in names]) for group, names in _GROUPS.items()}
        steps = {
            "correct_step_accuracy": divide(total[:, 0], total[:, 0] + total[:, 2]),
            "wrong_step_accuracy": divide(total[:, 3], total[:, 3] + total[:, 1]),
            "first_error_accuracy": ratio_of(weights, first[known], np.ones(len(known)), known),
        }
        return found | groups | classes | steps | {CORRECT: divide(sums[CORRECT][:, 0], sums[CORRECT].sum(1))}

    return compute


PRMBENCH = Suite(
    name="prmbench",
    title="PRMBench",
    published=(Published("all classes", "hitsmy/PRMBench_Preview", 6216),),
    format=lambda record: "prmbench",
    part=_part,
    published_set=lambda part: "" if part == CORRECT else "all classes",
    rule=_rule,
    sections={"score": "PRMScore"}
    | {group: group.capitalize() for group in _GROUPS}
    | {name: name for name in CLASSES}
    | {CORRECT: "correct (accuracy, not in the score)"},
    description=(
        "A step is predicted to be correct if its reward is above 0, or above --threshold. PRMScore = 0.5 F1 + 0.5 "
        "negative F1, with the correct, or the wrong steps as positive class, over the steps of all classes together; "
        "each class has the same by itself, and a class without wrong steps its F1. Simplicity, Soundness and "
        "Sensitivity are means of their classes. The class `correct` is made of the original solutions of the class "
        "`redundency`."
    ),
    differences=(
        "An F1 without a single hit is -1 there, and 0 here.",
        "For the classes redundency and circular, models with a redundancy judgement of their own use it there; a "
        "reward model has the one judgement.",
        "The official code cuts at 2,048 tokens; here the steps of a solution longer than max_length are left out, as "
        "there those of an invalid answer.",
    ),
    expand=_expand,
    cluster=lambda record: str(record.get("idx") or ""),
    steps=True,
)
