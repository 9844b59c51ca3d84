"""ProcessBench's and PRMBench's rules on hand-computed examples, and the metrics of steps with intervals."""

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.metrics.bootstrap import intervals
from rmjax.metrics.labels import process_samples, step_metrics
from rmjax.metrics.process import first_error_f1, first_errors, prm_score


def test_first_errors_count_where_the_index_is_exact():
    found = first_error_f1([1, 2, -1, 0, -1], [1, 3, 0, -1, -1])
    assert found == pytest.approx({"error_accuracy": 1 / 3, "correct_accuracy": 1 / 2, "f1": 0.4})
    assert first_error_f1([1, 0], [0, -1])["f1"] == 0
    assert np.isnan(first_error_f1([-1], [-1])["f1"])
    with pytest.raises(InputError, match="1 predictions for 2 labels"):
        first_error_f1([1], [1, 2])


def test_the_first_step_that_is_not_above_the_threshold():
    scores = [np.array([0.2, 0.9, 0.1]), np.array([0.9]), np.array([0.5, 0.0])]
    assert first_errors(scores, 0.5) == [0, -1, 0]
    assert first_errors(scores) == [-1, -1, 1]


def test_prm_score_is_the_mean_of_both_f1():
    said, right = np.array([1, 1, 1, 0, 0, 1], bool), np.array([1, 1, 0, 0, 1, 1], bool)
    found = prm_score(said, right)  # 3 true and 1 false positives, 1 true and 1 false negatives
    assert found == pytest.approx({"f1": 6 / 8, "negative_f1": 2 / 4, "prm_score": 0.625})
    assert prm_score([True], [True]) == {"prm_score": 0.5, "f1": 1.0, "negative_f1": 0.0}
    weighted = prm_score(said, right, weights=np.array([0, 1, 2, 1, 0, 0]))
    assert weighted == pytest.approx(prm_score([1, 1, 1, 0], [1, 0, 0, 0]))
    with pytest.raises(InputError, match="steps: 0 predictions for 0 labels"):
        prm_score([], [])


def test_metrics_of_processes_have_intervals():
    rewards = [np.array([1.0, -1.0, 2.0]), np.array([1.0, 3.0]), np.array([-0.5]), np.array([1.0])] * 10
    labels = [np.array([1.0, 0.0, np.nan]), np.array([1.0, 1.0]), np.array([1.0]), np.array([np.nan])] * 10
    found = intervals(process_samples(rewards, labels, range(40)))
    # Found first errors: 1, -1, 0; actual: 1, -1, -1. Steps said right: + - + + -, right: + - + + +.
    assert found["error_accuracy"] == 1
    assert found["correct_accuracy"] == 0.5
    assert found["first_error_f1"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(6 / 7)
    assert found["negative_f1"] == pytest.approx(2 / 3)
    every = step_metrics(np.concatenate(rewards), np.concatenate(labels)) | found
    for name in ("accuracy", "auc", "prm_score", "f1", "first_error_f1", "correct_accuracy"):
        assert every[f"{name}_low"] <= every[name] <= every[f"{name}_high"]
    assert found["error_accuracy_low"] == found["error_accuracy_high"] == 1
    assert intervals(process_samples([np.zeros(1)], [np.array([np.nan])], [0])) == {}


def test_first_error_f1_of_processes_by_hand():
    nan = np.nan
    rewards_and_labels = [
        ([2.0, -1.0, -3.0], [1, 0, nan]),  # first error 1, found
        ([1.0, 0.5, -2.0], [1, 0, 0]),  # first error 1; predicted 2
        ([0.0, 1.0], [0, 1]),  # a reward of 0 is not above the threshold: first error 0, found
        ([3.0, 3.0], [1, 0]),  # first error 1; none predicted
        ([1.0, -1.0], [1, nan]),  # no error; the step with the negative reward was not judged
        ([1.0, -1.0, 2.0], [1, 0.5, 1]),  # no error: neutral steps are not judged
        ([-1.0, 1.0], [1, 1]),  # no error; predicted 0
        ([-1.0], [nan]),  # left out
    ]
    rewards, labels = zip(*rewards_and_labels, strict=True)
    found = intervals(process_samples([np.array(x) for x in rewards], [np.array(y, float) for y in labels], range(8)))
    assert found["error_accuracy"] == 2 / 4
    assert found["correct_accuracy"] == pytest.approx(2 / 3)
    assert found["first_error_f1"] == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))  # 4 / 7
    # As in a run on the built-in data: errors are found, and of the few processes without one none is accepted.
    few = [np.array([1.0, -1.0])] * 9 + [np.array([-1.0, 1.0])]
    found = intervals(process_samples(few, [np.array([1.0, 0.0])] * 9 + [np.array([1.0, 1.0])], range(10)))
    assert (found["error_accuracy"], found["correct_accuracy"], found["first_error_f1"]) == (1, 0, 0)
