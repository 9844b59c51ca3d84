"""Agreement between processes; whole multi-process runs are tested in tests/training and tests/evaluation."""

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.core.processes import all_equal, of_first, synchronized_errors


@pytest.fixture
def other_process(monkeypatch):
    """Simulates a second process: `other_process(value)` sets what it contributes to each gather."""

    def set_value(value):
        gather = lambda own: np.stack([own, np.full_like(own, value)])
        monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", gather)

    return set_value


def test_a_single_process_raises_its_own_error():
    with pytest.raises(KeyError, match="own"), synchronized_errors():
        raise KeyError("own")
    with synchronized_errors():
        pass
    assert all_equal(b"abc")


def test_an_error_in_another_process_is_raised_here(other_process):
    other_process(True)
    with pytest.raises(InputError, match="process 1 failed"), synchronized_errors():
        pass
    with pytest.raises(KeyError, match="own"), synchronized_errors():
        raise KeyError("own")
    other_process(False)
    with synchronized_errors():
        pass


def test_digests_are_compared(other_process):
    other_process(ord("a"))
    assert all_equal(b"aaa")
    assert not all_equal(b"aab")


def test_the_first_process_decides(monkeypatch):
    assert of_first(739_947) == 739_947
    monkeypatch.setattr("jax.experimental.multihost_utils.broadcast_one_to_all", lambda own: own - 1)
    assert of_first(739_947) == 739_946
