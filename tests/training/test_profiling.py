"""Profiler traces of some steps of a run."""

import pytest

from rmjax.core.errors import InputError
from rmjax.training.experiment import train
from rmjax.training.profiling import parse_steps
from tests.training.test_experiment import losses


def test_the_steps_are_parsed():
    assert parse_steps("") is None
    assert parse_steps("3:3", last_step=3) == (3, 3)
    for value in ("3", "0:2", "4:3", "a:b", "1:2:3", "-1:2"):
        with pytest.raises(InputError, match=rf"config\.train\.profile is '{value}'; expected first:last"):
            parse_steps(value)
    with pytest.raises(InputError, match=r"config\.train\.profile is '3:7'; the last step of the run is 6"):
        parse_steps("3:7", last_step=6)


def test_a_trace_is_written_and_does_not_change_the_run(tiny, tmp_path):
    train(tiny, tmp_path / "plain", progress=False)
    tiny.train.profile = "2:3"
    train(tiny, tmp_path / "run", progress=False)
    assert {path.suffix for path in (tmp_path / "run" / "profile").rglob("*") if path.is_file()} >= {".pb"}
    assert not (tmp_path / "plain" / "profile").exists()
    assert losses(tmp_path / "run") == losses(tmp_path / "plain")
    tiny.train.profile = "5:9"
    with pytest.raises(InputError, match="the last step of the run is 6"):
        train(tiny, tmp_path / "wrong", progress=False)


def test_a_trace_is_written_when_the_run_ends_early(tiny, tmp_path):
    tiny.train.profile = "1:6"
    tiny.optimizer.learning_rate, tiny.optimizer.warmup_steps, tiny.optimizer.grad_clip = 1e30, 0, 0.0
    with pytest.raises(InputError, match="not finite"):
        train(tiny, tmp_path / "run", progress=False)
    assert any((tmp_path / "run" / "profile").rglob("*.pb"))
