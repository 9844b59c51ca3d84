"""Metrics of judged steps by the rules of ProcessBench and PRMBench.

Axis letters: P processes (solutions), N steps of all processes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rmjax.core.errors import InputError


def first_error_f1(predicted: Sequence[int] | np.ndarray, labels: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Returns `f1` = 2 · e · c / (e + c), and its parts `error_accuracy` e and `correct_accuracy` c (ProcessBench).

    e is the share of the processes with an error whose first wrong step is predicted exactly; c the share of those
    without an error for which none is predicted. A part without processes is NaN, and so is then f1; f1 is 0 if both
    parts are 0. Source: Zheng et al. 2024, "ProcessBench", and its published evaluation code.

    Args:
      predicted, labels: [P], the index of the first wrong step from 0, or -1 if no step is wrong.

    Raises:
      InputError: the lengths differ, or there is no process.

    >>> first_error_f1([2, 0, -1, -1], [2, 1, -1, -1])
    {'f1': 0.6666666666666666, 'error_accuracy': 0.5, 'correct_accuracy': 1.0}
    """
    found, known = np.asarray(predicted), np.asarray(labels)
    if found.shape != known.shape or not known.size:
        raise InputError(
            f"first errors: {found.size} predictions for {known.size} labels; expected one each, at least one"
        )
    hit, wrong = found == known, known != -1
    share = lambda members: float(hit[members].mean()) if members.any() else float("nan")
    error, correct = share(wrong), share(~wrong)
    f1 = 0.0 if error == correct == 0 else 2 * error * correct / (error + correct)
    return {"f1": f1, "error_accuracy": error, "correct_accuracy": correct}


def first_errors(scores: Sequence[np.ndarray], threshold: float = 0.0) -> list[int]:
    """Returns the index of the first step of each process whose score is not above `threshold`; -1 if all are above.

    Args:
      scores: of each process, [steps].

    >>> first_errors([np.array([1.0, -1.0, 2.0]), np.array([0.5])])
    [1, -1]
    """
    return [int(np.argmax(bad)) if (bad := np.asarray(each) <= threshold).any() else -1 for each in scores]


def prm_score(predicted: ArrayLike, correct: ArrayLike, weights: np.ndarray | None = None) -> dict[str, float]:
    """Returns `prm_score` = 0.5 · f1 + 0.5 · negative_f1, `f1` and `negative_f1` of steps (PRMBench).

    f1 = 2 TP / (2 TP + FP + FN) with the correct steps as positive class, negative_f1 the same with the wrong ones;
    each is 0 if its class is neither predicted nor there. Source: Song et al. 2025, "PRMBench".

    Args:
      predicted, correct: bool [N], whether a step is predicted to be, and is, correct.
      weights: float64 [N], how often each step counts; None: once.

    Raises:
      InputError: the lengths differ, or there is no step.

    >>> prm_score([True, True, False, False], [True, False, False, False])
    {'prm_score': 0.7333333333333334, 'f1': 0.6666666666666666, 'negative_f1': 0.8}
    """
    said, right = np.asarray(predicted, bool), np.asarray(correct, bool)
    if said.shape != right.shape or not right.size:
        raise InputError(f"steps: {said.size} predictions for {right.size} labels; expected one each, at least one")
    count = lambda members: float(members.sum() if weights is None else weights[members].sum())
    hit, rejected, missed = count(said & right), count(~said & ~right), count(said != right)
    share = lambda hits: 2 * hits / (2 * hits + missed) if hits else 0.0
    f1, negative = share(hit), share(rejected)
    return {"prm_score": 0.5 * f1 + 0.5 * negative, "f1": f1, "negative_f1": negative}
