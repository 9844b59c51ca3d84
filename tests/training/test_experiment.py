"""Whole training runs: meshes, gradient accumulation, resuming, stopping, and errors."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import loading, paths
from rmjax.models.workdir import Workdir
from rmjax.training.experiment import train
from rmjax.training.step import Trainer

TIMINGS = ("tokens_per_second", "comparisons_per_second", "step_time")
ROOT = pathlib.Path(__file__).parent.parent.parent


def lines(workdir, split=None):
    read = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read if split in (None, line["split"])]


def losses(workdir):
    return [line["loss"] for line in lines(workdir, "train")]


def final_params(workdir):
    from rmjax.core.mesh import make_mesh

    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        return jax.device_get(loading.load_model(str(workdir), mesh=mesh).params)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    from tests.training.conftest import tiny

    config = tiny.__wrapped__()
    workdir = tmp_path_factory.mktemp("reference") / "run"
    train(config, workdir)
    return workdir


def test_a_run_writes_the_files_and_metrics_of_the_contract(reference):
    assert {path.name for path in reference.iterdir()} >= {"config.json", "metrics.jsonl", "tensorboard", "checkpoints"}
    written = lines(reference)
    assert [(line["step"], line["split"]) for line in written if line["split"] == "validation"] == [
        (0, "validation"),
        (3, "validation"),
        (6, "validation"),
    ]
    assert [line["step"] for line in written if line["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    names = {"loss", "accuracy", "margin", "reward_mean", "reward_std", "chosen_reward_mean", "rejected_reward_mean"}
    assert names | {"grad_norm", "learning_rate"} <= written[1].keys()
    assert "accuracy_ceiling" in written[0]
    full = json.loads((reference / "metrics.jsonl").read_text().splitlines()[1])
    assert all(full[name] > 0 for name in TIMINGS)


def test_a_zero_head_starts_at_loss_ln_2_with_all_rewards_tied(reference):
    start = lines(reference, "validation")[0]
    assert abs(start["loss"] - np.log(2)) < 1e-6
    assert start["accuracy"] == 0.5


MESHES = [(8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 2, 1), (1, 1, 1, 8), (2, 2, 2, 1), (1, 2, 2, 2)]


@pytest.mark.parametrize(
    ("mesh", "attention"),
    [(mesh, "dense") for mesh in MESHES] + [((1, 2, 2, 2), name) for name in ("blocks", "triton", "mosaic")],
)
def test_losses_on_every_mesh_equal_those_on_one_device(tiny, reference, tmp_path, mesh, attention):
    for axis, size in zip(("data", "fsdp", "tensor", "sequence"), mesh, strict=True):
        tiny.mesh[axis] = size
    tiny.model.attention = attention
    train(tiny, tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(reference), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"train.rows_per_device": 1},
        {"train.rows_per_device": 16},
        {"data.row_length": 512},
        {"model.remat": "layer"},
        {"model.remat": "none"},
        {"model.scan_layers": False},
    ],
)
def test_memory_layout_does_not_change_losses(tiny, reference, tmp_path, change):
    for key, value in change.items():
        section, name = key.split(".")
        tiny[section][name] = value
    train(tiny, tmp_path / "run")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(reference), atol=1e-5)


@pytest.mark.parametrize(("row_length", "devices"), [(128, 1), (192, 2)])
def test_truncated_microbatches_do_not_change_losses(tiny, reference, tmp_path, monkeypatch, row_length, devices):
    counts, compile_step = [], Trainer.compile_step

    def recording(trainer, short_length):
        step = compile_step(trainer, short_length)
        return lambda state, batch, microbatches: (counts.append(microbatches), step(state, batch, microbatches))[1]

    monkeypatch.setattr(Trainer, "compile_step", recording)
    tiny.data.row_length, tiny.train.rows_per_device, tiny.mesh.data = row_length, 1, devices
    train(tiny, tmp_path / "run")
    assert any(0 < full < used for full, used in counts)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(reference), atol=1e-5)


def test_the_best_and_the_last_checkpoints_are_kept(tiny, tmp_path):
    tiny.train.steps = 12
    tiny.evaluation.every = 2
    tiny.checkpoint.keep, tiny.checkpoint.keep_best = 1, 2
    tiny.optimizer.learning_rate = 1e-2  # so that accuracy does not simply rise
    workdir = tmp_path / "run"
    train(tiny, workdir)
    accuracy = {line["step"]: line["accuracy"] for line in lines(workdir, "validation") if line["step"]}
    best = Workdir(workdir).best_step()
    assert accuracy[best] == max(accuracy.values())
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert 12 in kept
    assert best in kept
    assert sorted(accuracy[step] for step in kept)[-2:] == sorted(accuracy.values())[-2:]
    assert len(kept - {12}) <= 2
    assert Workdir(workdir).metadata()["validation"]["accuracy"] == accuracy[best]


def test_an_interrupted_run_resumes_bit_for_bit(tiny, reference, tmp_path):
    """Metrics of the steps that are repeated, and a line that a kill left incomplete, are removed."""
    workdir = tmp_path / "run"
    train(tiny, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "spl')
    result = train(tiny, workdir)
    assert (result.step, result.stopped) == (6, False)
    assert lines(workdir) == lines(reference)
    chex.assert_trees_all_equal(final_params(workdir), final_params(reference))


def command(config, workdir, tmp_path):
    file = tmp_path / "config_file.py"
    file.write_text(
        "import json\nfrom rmjax.core import config as configs\n\ndef get_config():\n"
        f"    c = configs.default()\n    c.update(json.loads({config.to_json()!r}))\n    return c\n"
    )
    environment = dict(
        os.environ,
        JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir,
        JAX_NUM_CPU_DEVICES="8",
        RMJAX_CACHE=str(tmp_path / "cache"),
    )
    arguments = [sys.executable, "-m", "rmjax.train", f"--config={file}", f"--workdir={workdir}"]
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_step(process, workdir, step):
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        path = workdir / "metrics.jsonl"
        if path.exists() and any(f'"step": {step}, "split": "train"' in line for line in path.read_text().splitlines()):
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate()[0].decode())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_resumes_bit_for_bit(tiny, tmp_path, number):
    tiny.train.steps = 40
    tiny.evaluation.every = 5
    train(tiny, tmp_path / "whole")
    workdir = tmp_path / "killed"
    process = command(tiny, workdir, tmp_path)
    wait_for_step(process, workdir, 12)
    process.send_signal(number)
    output = process.communicate(timeout=120)[0].decode()
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number, output  # so that `train && export` does not go on
        assert "stopped at step" in output
    process = command(tiny, workdir, tmp_path)
    output = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, output
    assert "resuming" in output
    assert lines(workdir) == lines(tmp_path / "whole")
    chex.assert_trees_all_equal(final_params(workdir), final_params(tmp_path / "whole"))


def test_swapped_labels_mirror_the_accuracy(reference, tmp_path, tiny):
    """A model scored on swapped labels has accuracy 1 - a."""
    from rmjax.data.records import synthetic

    for name, keys in (("right", ("chosen", "rejected")), ("swapped", ("rejected", "chosen"))):
        records = [item.record for item in synthetic.comparisons("validation", 40)]
        text = "".join(
            json.dumps({"prompt": r["prompt"], "chosen": r[keys[0]], "rejected": r[keys[1]]}) + "\n" for r in records
        )
        (tmp_path / f"{name}.jsonl").write_text(text)
    accuracy = {}
    for name in ("right", "swapped"):
        tiny.model.path = str(reference)
        tiny.data.validation = (str(tmp_path / f"{name}.jsonl"),)
        tiny.train.steps = 1
        train(tiny, tmp_path / f"run-{name}")
        accuracy[name] = lines(tmp_path / f"run-{name}", "validation")[0]["accuracy"]
    assert accuracy["right"] != 0.5
    assert accuracy["right"] + accuracy["swapped"] == pytest.approx(1.0)


def test_one_batch_is_overfit(tiny, tmp_path):
    tiny.data.train_limit = 16
    tiny.train.steps = 120
    tiny.evaluation.every = 120
    tiny.optimizer.learning_rate = 3e-3
    train(tiny, tmp_path / "run")
    assert losses(tmp_path / "run")[-1] < 0.05


def test_non_finite_loss_stops_and_names_the_comparisons(tiny, tmp_path):
    tiny.optimizer.learning_rate = 1e30
    tiny.optimizer.warmup_steps = 0
    tiny.optimizer.grad_clip = 0.0
    with pytest.raises(InputError, match=r"step \d: \w+ is (nan|inf), .* comparisons: synthetic-train:\d+"):
        train(tiny, tmp_path / "run")


def test_a_workdir_of_another_configuration_is_refused(tiny, reference):
    tiny.optimizer.learning_rate = 0.5
    with pytest.raises(InputError, match=r"another configuration \(optimizer.learning_rate: 0.001 there, 0.5 here\)"):
        train(tiny, reference)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tiny, reference, tmp_path):
    base = Tokenizer.load("").base
    base.add_tokens(["<extra>"])
    base.save_pretrained(tmp_path / "tokenizer")
    tiny.model.path, tiny.data.tokenizer = str(reference), str(tmp_path / "tokenizer")
    with pytest.raises(InputError, match="use the model's own tokenizer"):
        train(tiny, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mesh.tensor": 4}, "mesh: tensor is 4, which does not divide the model's 2 key/value heads"),
        ({"mesh.data": 3, "mesh.fsdp": 4}, "its fixed sizes multiply to 12"),
        ({"train.steps": 0}, "set one of them, or both"),
        ({"data.row_length": 16}, "more than config.data.row_length = 16"),
        (
            {"data.max_length": 4},
            r"config.data.train: no usable comparison in 200 records: 200 comparisons longer than .*max_length = 4 "
            r"\(first: synthetic-train:1, \d+ tokens\)",
        ),
        ({"objective.name": "magic"}, "config.objective.name is 'magic'; choose one of"),
        ({"model.path": "/nowhere/at/all"}, "no such directory"),
    ],
)
def test_a_wrong_value_is_named_in_the_error(tiny, tmp_path, change, message):
    for key, value in change.items():
        section, name = key.split(".")
        tiny[section][name] = value
    with pytest.raises(InputError, match=message):
        train(tiny, tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/binary.py", "--config.train.stepz=3"], "--config.train.stepz: no such key; nearest: "),
        (
            ["--config=configs/smollm2.py"],
            "config.model.path: required by this configuration and not set; on the command line: --config",
        ),
        ([], "--config is missing"),
    ],
)
def test_wrong_flags_print_one_line(arguments, message):
    result = subprocess.run([sys.executable, "-m", "rmjax.train", *arguments], cwd=ROOT, capture_output=True, text=True)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.stderr


def test_data_options_are_stored_with_the_model(reference):
    options, max_length = paths.data_options(str(reference))
    assert (options["strings"], options["step_labels"], max_length) == ("joined", "auto", 1024)
    metadata = Workdir(reference).metadata()
    assert (metadata["data_options"], metadata["validation_data"]) == (options, ["synthetic"])
