"""Steps whose loss is not finite: they end the run, or are skipped, counted and kept."""

import json
import pathlib

import chex
import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.models.workdir import Workdir
from rmjax.training.experiment import train
from tests.training.test_experiment import final_params, lines, losses
from tests.training.test_tasks import with_objective, write

STEPS = 6  # of two epochs of 48 records, 16 a step


@pytest.fixture
def poisoned(tiny, tmp_path):
    """A configuration whose data has one record with a label so large that its squared error is infinite."""
    good = write(tmp_path / "good.jsonl", "regression", 48)
    records = [json.loads(line) for line in pathlib.Path(good).read_text().splitlines()]
    records[20]["labels"] = {name: 1e30 for name in records[20]["labels"]}
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = with_objective(tiny, "auto", "regression")
    config.data.train, config.data.validation = (str(tmp_path / "bad.jsonl"),), (good,)
    config.train.steps, config.train.epochs = 0, 2.0
    config.evaluation.every = 1
    return config


def test_a_step_that_is_not_finite_ends_the_run_and_is_kept(poisoned, tmp_path):
    with pytest.raises(InputError, match=r"step \d: loss is inf, not finite; .*bad.jsonl:21.*the run ends: ") as error:
        train(poisoned, tmp_path / "run", progress=False)
    (kept,) = (tmp_path / "run" / "non_finite").iterdir()
    assert str(kept) in str(error.value)
    arrays = np.load(kept)
    assert f"{tmp_path}/bad.jsonl:21" in arrays["comparisons"]
    assert len(arrays["comparisons"]) == 16
    assert np.nanmax(arrays["labels"]) == np.float32(1e30)


def test_steps_that_are_not_finite_are_skipped_and_counted(poisoned, tmp_path):
    poisoned.train.skip_non_finite = 2
    log = []
    train(poisoned, tmp_path / "run", progress=False, log=log.append)
    skipped = lines(tmp_path / "run", "skipped")
    assert [line["count"] for line in skipped] == [1, 2]
    assert [line for line in log if "the step is skipped, 1 of at most 2" in line]
    assert len(losses(tmp_path / "run")) == STEPS - 2
    validation = {line["step"]: line["mse"] for line in lines(tmp_path / "run", "validation")}
    for line in skipped:  # the update was left out
        assert validation[line["step"]] == validation[line["step"] - 1]
    assert len(set(validation.values())) == STEPS + 1 - 2
    chex.assert_tree_all_finite(final_params(tmp_path / "run"))


def test_skipped_steps_are_bounded_also_across_resumption(poisoned, tmp_path):
    poisoned.train.skip_non_finite = 1
    with pytest.raises(InputError, match="the run ends after 1 skipped step: "):
        train(poisoned, tmp_path / "run", progress=False)
    assert Workdir(tmp_path / "run").created
    with pytest.raises(InputError, match="the run ends after 1 skipped step: "):
        train(poisoned, tmp_path / "run", progress=False)
    poisoned.train.skip_non_finite = 2
    assert train(poisoned, tmp_path / "run", progress=False).step == STEPS
    assert [line["count"] for line in lines(tmp_path / "run", "skipped")] == [1, 2]
