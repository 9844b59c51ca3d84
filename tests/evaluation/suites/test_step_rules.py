"""Rules of the suites that judge steps, on invented records: numbers computed by hand, and plain formulas."""

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.evaluation.suites import SUITES
from tests.evaluation.suites.tasks import NAN, task, values


def solution(subset, rewards, label):
    return task("processbench", rewards, id=f"{subset}-0", steps=["s"] * len(rewards), label=label)


def test_processbench_first_wrong_step():
    tasks = [solution("gsm8k", [2, -1, -2], 1), solution("gsm8k", [2, 1, -2], 1), solution("gsm8k", [1, 1], -1)]
    tasks += [solution("math", [-1, 1], 0), solution("math", [0.5, 0], -1), solution("math", [NAN, NAN], -1)]
    found = values("processbench", tasks, 0.0)
    assert found["gsm8k"] == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert found["math"] == 0
    assert found["math/error_accuracy"] == 1
    assert found["math/correct_accuracy"] == 0
    assert found["score"] == pytest.approx((2 / 3 + 0) / 2)


def plain_f1(tasks, threshold):
    hit = {True: [], False: []}
    for each in tasks:
        wrong = [i for i, reward in enumerate(each.rewards) if reward <= threshold]
        hit[each.record["label"] == -1].append((wrong[0] if wrong else -1) == each.record["label"])
    error, correct = np.mean(hit[False]), np.mean(hit[True])
    return 2 * error * correct / (error + correct) if error + correct else 0.0


def test_processbench_chooses_the_threshold_on_gsm8k():
    rng = np.random.default_rng(2)
    tasks = []
    for i in range(60):
        label = int(rng.integers(-1, 4))
        quality = np.array([2.0 if label == -1 or s < label else -1.0 for s in range(4)])
        tasks.append(solution("gsm8k" if i % 2 else "omnimath", quality + rng.normal(size=4) + 5, label))
    found = values("processbench", tasks)
    subset = lambda name: [each for each in tasks if each.part == name]
    grid = np.linspace(-5, 12, 4001)
    assert found["gsm8k"] == pytest.approx(max(plain_f1(subset("gsm8k"), t) for t in grid))
    assert found["gsm8k"] == pytest.approx(plain_f1(subset("gsm8k"), found["threshold"]))
    assert found["omnimath"] == pytest.approx(plain_f1(subset("omnimath"), found["threshold"]))
    with pytest.raises(InputError, match="the threshold is chosen on gsm8k, which the data lacks"):
        values("processbench", subset("omnimath"))


def steps(name, rewards, errors):
    return task("prmbench", rewards, classification=name, error_steps=errors)


def test_prmbench_pools_steps_and_counts_from_one():
    tasks = [steps("circular", [1, 1, -1, -1], [2, 3]), steps("deception", [1, 1], [1]), steps("correct", [1, -1], [])]
    tasks += [steps("multi_solutions", [1, -1], []), steps("circular", [NAN, NAN], [1])]
    found = values("prmbench", tasks)
    # circular: TP 1, FP 1, FN 1, TN 1; deception: TP 1, FP 1; multi_solutions: TP 1, FN 1.
    f1, negative = 2 * 3 / (2 * 3 + 2 + 2), 2 * 1 / (2 * 1 + 2 + 2)
    assert (found["f1"], found["negative_f1"]) == (pytest.approx(f1), pytest.approx(negative))
    assert found["score"] == pytest.approx((f1 + negative) / 2)
    assert found["circular"] == pytest.approx(0.5)
    assert found["deception"] == pytest.approx(0.5 * 2 / 3)
    assert found["multi_solutions"] == pytest.approx(2 / 3)  # no wrong steps: F1 alone
    assert found["sensitivity"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert found["correct"] == 0.5
    assert found["wrong_step_accuracy"] == pytest.approx(1 / 3)
    assert found["correct_step_accuracy"] == pytest.approx(3 / 5)
    assert found["first_error_accuracy"] == 0


def test_prmbench_makes_the_class_correct_of_the_originals():
    record = {"idx": "t_1", "classification": "redundency", "original_question": "q", "original_process": ["a", "b"]}
    record |= {"modified_question": "r", "modified_process": ["a", "b", "b"], "error_steps": [3]}
    same, original = SUITES["prmbench"].expand(record)
    assert same is record
    assert original["modified_process"] == ["a", "b"]
    assert original["error_steps"] == []
    assert original["classification"] == "correct"
    assert original["idx"] == "t_1"
    assert SUITES["prmbench"].expand(record | {"classification": "circular"})[1:] == []
