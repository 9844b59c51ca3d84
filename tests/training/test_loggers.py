"""Optional loggers, phases of the learning rate, unshuffled data, and the upload of an artifact, without network."""

import json
import sys
import types
from typing import ClassVar

import huggingface_hub
import numpy as np
import pytest

from rmjax.core.config_checks import check
from rmjax.core.errors import InputError
from rmjax.models import hub
from rmjax.models.workdir import Workdir
from rmjax.training import experiment, loggers
from rmjax.training.optimizer import check_schedule, make_schedule
from tests.training.test_experiment import lines


class FakeRun:
    def __init__(self, options):
        self.options, self.logged, self.axes, self.finished = options, [], [], 0

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


@pytest.fixture
def runs(monkeypatch):
    """The runs that a fake package `wandb` was asked for."""
    made = []
    package = types.ModuleType("wandb")
    package.init = lambda **options: made.append(FakeRun(options)) or made[-1]
    monkeypatch.setitem(sys.modules, "wandb", package)
    return made


def test_a_run_with_wandb_phases_of_the_rate_and_without_shuffling(tiny, tmp_path, runs, monkeypatch):
    """One run: wandb receives what metrics.jsonl does, and the comparisons come in the order of the source."""
    plans = []
    plan = experiment.training_plan
    monkeypatch.setattr(experiment, "training_plan", lambda *a, **b: plans.append(plan(*a, **b)) or plans[-1])
    tiny.train.loggers, tiny.data.shuffle = ("wandb",), False
    tiny.optimizer.update(warmup_steps=1, hold_steps=2, final_steps=2, final_fraction=0.1, schedule="linear")
    workdir = tmp_path / "run"
    experiment.train(tiny, workdir)
    (run,) = runs
    assert run.options["name"] == "run"
    assert run.options["config"]["train"]["loggers"] == ["wandb"]
    assert run.options["id"] == (workdir / "wandb_id").read_text()
    written = [
        {f"{line['split']}/{key}": value for key, value in line.items() if key not in ("step", "split")}
        | {"step": line["step"]}
        for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    ]
    assert run.logged == written
    assert (run.axes, run.finished) == ([("*", "step")], 1)
    rates = np.array([line["learning_rate"] for line in lines(workdir, "train")]) / tiny.optimizer.learning_rate
    np.testing.assert_allclose(rates, [0.5, 1, 1, 1, 0.1, 0.1], rtol=1e-5)
    order = np.concatenate([plans[0].comparisons(step) for step in range(6)])
    np.testing.assert_array_equal(order, np.arange(6 * 16))


def test_a_resumed_run_continues_that_of_wandb_and_a_new_one_does_not(tmp_path, runs):
    workdir = loggers.Workdir(tmp_path)
    workdir.config_file.write_text("{}")
    for step in (0, 3, 0):
        loggers.WandbWriter(workdir, step)
    first, resumed, new = (run.options["id"] for run in runs)
    assert first == resumed != new


@pytest.mark.parametrize(("name", "message"), [("wandb", "pip install wandb"), ("mlflow", "choose from wandb")])
def test_a_logger_that_cannot_be_used(name, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it fails
    with pytest.raises(InputError, match=rf"config\.train\.loggers holds '{name}'.*{message}"):
        loggers.check((name,))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_hold_and_final_steps_bound_the_decay(tiny, schedule):
    options = tiny.optimizer
    options.update(schedule=schedule, learning_rate=1.0, warmup_steps=4, final_fraction=0.2)
    plain = make_schedule(options, 16)
    options.update(hold_steps=3, final_steps=5)
    rates = np.array([make_schedule(options, 24)(step) for step in range(24)])
    np.testing.assert_allclose(rates[4:7], 1)
    np.testing.assert_allclose(rates[19:], 0.2, rtol=1e-6)
    np.testing.assert_allclose(rates[7:19], [plain(step) for step in range(4, 16)], rtol=1e-6)
    with pytest.raises(InputError, match="leave none of the run's 12 steps"):
        check_schedule(options, 12)
    options.schedule = "constant"
    with pytest.raises(InputError, match=r"hold_steps.* belong to a decay"):
        check(tiny)


def test_weights_need_shuffling(tiny):
    tiny.data.update(shuffle=False, weights=(1.0,))
    with pytest.raises(InputError, match=r"data\.weights draws .* at random"):
        check(tiny)


class FakeApi:
    calls: ClassVar = []

    def create_repo(self, name, private, exist_ok):
        self.calls.append(("create", name, private, exist_ok))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir())))


def test_an_exported_artifact_is_uploaded_with_its_card(tmp_path, run_main, monkeypatch, capsys):
    def export(path, output, **options):
        output.mkdir()
        (output / "README.md").write_text("card")
        return {"attributes": ["reward"], "transformers_class": "", "transformers_shift": [0.0]}

    monkeypatch.setattr("rmjax.training.export.export", export)
    monkeypatch.setattr(sys.modules.get("rmjax.export") or __import__("rmjax.export", fromlist=["x"]), "export", export)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("rmjax.models.workdir.Workdir.is_workdir", True)
    run_main("export", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'a'}", "--push_to_hub=me/reward")
    assert FakeApi.calls == [("create", "me/reward", True, True), ("upload", "me/reward", ["README.md"])]
    assert "uploaded it to https://huggingface.co/me/reward" in capsys.readouterr().out


def test_uploads_that_fail_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"push_to_hub=a/b/c: .*expected OWNER/NAME"):
        hub.check_name("a/b/c")

    def refuse(self, name, private, exist_ok):
        raise OSError("401\nunauthorized")

    monkeypatch.setattr(FakeApi, "create_repo", refuse)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    with pytest.raises(InputError, match="push_to_hub=me/x: 401 unauthorized; log in"):
        hub.push(tmp_path, "me/x")


def test_wandb_that_cannot_start_ends_in_a_message(tmp_path, monkeypatch):
    def init(**_):
        raise RuntimeError("api_key not configured (no-tty)")

    package = types.ModuleType("wandb")
    package.init = init
    monkeypatch.setitem(sys.modules, "wandb", package)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"wandb.*api_key not configured.*WANDB_MODE=offline"):
        loggers.WandbWriter(Workdir(tmp_path), 0)
