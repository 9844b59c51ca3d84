"""Errors of a run before its data is read, and of data that cannot be used."""

import json
import os

import pytest

from rmjax.core.errors import InputError
from rmjax.models.workdir import Workdir
from rmjax.training import datasets
from rmjax.training.checks import check_workdir
from rmjax.training.experiment import train
from tests.training.test_tasks import with_objective, write


@pytest.fixture
def no_data(monkeypatch):
    """Fails the test if data is loaded."""
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("data was loaded"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective.name": "magic"}, r"config\.objective\.name is 'magic'; choose one of"),
        ({"objective.reward_attribute": "helpfulness"}, r"reward_attribute is 'helpfulness'; the head has reward"),
        ({"optimizer.name": "adam"}, r"config\.optimizer\.name is 'adam'; choose one of adamw, lion"),
        ({"data.format": "csv"}, r"config\.data\.format is 'csv'; choose one of auto, "),
        ({"data.ties": "keep"}, r"config\.data\.ties is 'keep'"),
        ({"data.weights": (1.0, 2.0)}, r"config\.data\.weights has 2 entries, config\.data\.train 1 source;"),
        ({"data.validation": ("missing.jsonl",)}, r"data 'missing\.jsonl': no such file"),
        ({"model.attention": "flash"}, r"config\.model\.attention is 'flash'"),
        ({"train.profile": "3-4"}, r"config\.train\.profile is '3-4'; expected first:last"),
        ({"mesh.tensor": 4}, r"config\.mesh: tensor is 4, which does not divide the model's 2 key/value heads"),
        (
            {"mesh.data": 1, "mesh.sequence": 2, "data.row_length": 65},
            r"expected a multiple of config\.mesh\.sequence, 2",
        ),
    ],
)
def test_wrong_values_are_found_before_data_is_read(tiny, tmp_path, no_data, change, message):
    tiny.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=message):
        train(tiny, tmp_path / "run")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"run": ""}, r"workdir=.*run: .*run is a file; choose another directory"),
        ({"run/rmjax.json": "{}", "run/config.json": "{}"}, r"it holds a serving artifact \(rmjax\.json\), not a run"),
        ({"run/model.safetensors": "", "run/config.json": "{}"}, r"it holds a model \(model\.safetensors\), not a run"),
        ({"run/report.html": ""}, r"it holds an evaluation \(report\.html\), not a run; choose another workdir"),
        ({"run/config.json": '{"architectures": []}'}, r"its config\.json is not of a training run"),
    ],
)
def test_unusable_workdirs_are_found_before_data_is_read(tiny, tmp_path, no_data, files, message):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        train(tiny, tmp_path / "run")


def test_a_workdir_that_is_not_writable_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(
        InputError, match=rf"workdir={tmp_path}/runs/a: {tmp_path}: permission is denied; change the permissions"
    ):
        check_workdir(Workdir(tmp_path / "runs" / "a"), tiny)


def test_other_files_in_a_workdir_are_accepted(tiny, tmp_path):
    (tmp_path / "log.txt").write_text("a log that was started before the run\n")
    check_workdir(Workdir(tmp_path), tiny)
    train(tiny, tmp_path, progress=False)
    (tmp_path / "report.html").write_text("an evaluation that was written into the workdir")
    check_workdir(Workdir(tmp_path), tiny)


def test_the_first_cause_of_an_empty_split_is_named_with_its_count(tiny, tmp_path):
    """Not the consequence: that labels do not vary, or that no comparison has a preference."""
    tiny = with_objective(tiny, "auto", "regression", standardize=True)
    tiny.data.train = (write(tmp_path / "train.jsonl", "regression", 12),)
    tiny.data.validation = (write(tmp_path / "test.jsonl", "regression", 3),)
    tiny.data.max_length = 6
    with pytest.raises(
        InputError, match=r"config\.data\.train: no usable comparison in 12 records: 12 comparisons longer"
    ):
        train(tiny, tmp_path / "run")
    tiny.data.max_length = 1024
    (tmp_path / "test.jsonl").write_text('{"text": 1}\n{"other": 1}\n')
    tiny.data.format, tiny.data.on_bad_record = "regression", "skip"
    with pytest.raises(
        InputError, match=r"config\.data\.validation: no usable comparison in 2 records: .*test\.jsonl:1"
    ):
        train(tiny, tmp_path / "run")


def test_an_attribute_without_labels_is_named(tiny, tmp_path):
    tiny = with_objective(tiny, "auto", "regression", standardize=True, attributes=("order", "strat"))
    tiny.data.train = tiny.data.validation = (write(tmp_path / "a.jsonl", "regression"),)
    with pytest.raises(
        InputError, match=r"no record has a label of 'strat', which .* needs, only of order, start: set"
    ):
        train(tiny, tmp_path / "run")
    tiny.data.train = tiny.data.validation = (write(tmp_path / "b.jsonl", "pairs"),)
    with pytest.raises(InputError, match=r"no record has a label of 'order', which .* needs, it has no labels: set"):
        train(tiny, tmp_path / "run")


def test_the_format_of_the_built_in_data_does_not_apply_to_files(tiny, tmp_path):
    tiny.data.synthetic_format = "kwise"
    tiny.objective.name = "pairwise"
    lines = []
    train(tiny, tmp_path / "built-in", log=lines.append, progress=False)
    assert "train: synthetic: 200 comparisons of 200 records (kwise)" in lines[0]
    assert any("--data=synthetic --format=kwise " in line for line in lines if line.startswith("evaluate: "))
    source = tmp_path / "a.jsonl"
    source.write_text(
        "".join(json.dumps({"prompt": "p", "chosen": f"{i} b", "rejected": "a"}) + "\n" for i in range(30))
    )
    tiny.data.train = tiny.data.validation = (str(source),)
    lines.clear()
    train(tiny, tmp_path / "file", log=lines.append, progress=False)
    assert f"train: {source}: 30 comparisons of 30 records (pairs)" in lines[0]
