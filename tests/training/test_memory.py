"""The estimate of a run's memory: against the compiler's figures, and as an error before anything is loaded."""

import dataclasses

import jax
import pytest

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.core.mesh import AXES, make_mesh
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.models import loading
from rmjax.training import memory
from rmjax.training.compilation import StepShape, compile_step, make_trainer
from rmjax.training.experiment import train

QUIET = {"log": lambda line: None, "progress": False}


def make_config(**changes):
    config = configs.default()
    config.model.update(hidden_size=128, intermediate_size=512, num_layers=8, num_heads=4, num_kv_heads=2)
    config.train.update(steps=5, rows_per_device=2)
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


@pytest.mark.parametrize(
    ("changes", "row_length"),
    [
        ({}, 1024),
        ({"model__remat": "none"}, 256),  # dense attention
        ({"lora__rank": 8, "model__remat": "layer"}, 1024),
        ({"mesh__fsdp": 4, "mesh__tensor": 2}, 1024),
        ({"model__scan_layers": False, "model__num_layers": 2}, 256),  # copies of the weights
    ],
)
def test_the_estimate_is_near_the_compilers_figure(changes, row_length):
    config = make_config(**changes)
    mesh = make_mesh([1 if config.mesh[axis] == -1 else config.mesh[axis] for axis in AXES])
    trainer = make_trainer(config, mesh, 2000)
    with jax.set_mesh(mesh):
        shape = memory.Shape(config.train.rows_per_device, row_length, accumulates=True, saves=False)
        parts, host = memory.estimate(trainer, shape)
    compiled = compile_step(trainer, config.train.rows_per_device, StepShape(row_length, 2, 16, 8)).memory_analysis()
    found = compiled.argument_size_in_bytes + compiled.temp_size_in_bytes
    assert sum(parts.values()) == pytest.approx(found, rel=0.35)
    state = parts["parameters"] + parts["moments"]
    assert state == pytest.approx(compiled.argument_size_in_bytes, rel=0.02)  # the rest is the batch
    assert host["parameters"] == parts["parameters"] * mesh.devices.size


@pytest.mark.parametrize(
    ("rows", "remat", "measured"), [(4, "small", 35.31), (7, "small", 45.32), (7, "none", 53.0), (14, "small", 68.68)]
)
def test_the_estimate_is_near_the_peak_that_was_measured_on_a_gpu(monkeypatch, rows, remat, measured):
    monkeypatch.setattr(memory, "mesh_platform", lambda: "gpu")
    monkeypatch.setattr("rmjax.models.attention.mesh_platform", lambda: "gpu")
    config = make_config(model__dtype="bfloat16", model__remat=remat)
    config.model.update(hidden_size=2048, intermediate_size=8192, num_layers=16, num_heads=32, num_kv_heads=8)
    mesh = make_mesh(devices=jax.devices()[:1])
    trainer = make_trainer(config, mesh, 128256)
    with jax.set_mesh(mesh):
        parts, _ = memory.estimate(trainer, memory.Shape(rows, 4096, accumulates=True, saves=False))
    del parts["copies of weights"]
    assert sum(parts.values()) / 2**30 == pytest.approx(measured, rel=0.1)


@pytest.fixture
def little(monkeypatch):
    """Makes memory seem small, and loading fail."""

    def set_left(size):
        monkeypatch.setattr("rmjax.core.memory.host_memory", lambda: memory.memory.Available(size, "a test's limit"))

    monkeypatch.setattr(memory, "_COMPILER", 0.0)
    return set_left


def test_a_run_that_cannot_fit_ends_before_it_loads_or_creates_anything(tmp_path, tiny, little, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("parameters were made, or data was read")

    monkeypatch.setattr(loading, "start_params", fail)
    tiny.model.update(hidden_size=1024, intermediate_size=4096, num_layers=16)
    tiny.train.rows_per_device = 64
    little(4 << 30)
    with pytest.raises(InputError) as error:
        train(tiny, tmp_path / "run", **QUIET)
    text = str(error.value)
    assert text.startswith("training (memory) needs about ")
    for part in (
        "parameters 0.94 GiB",
        "moments 1.88 GiB",
        "gradients 0.94 GiB",
        "activations ",
        "checkpoint 4.22 GiB",
    ):
        assert part in text, part
    assert "4.00 GiB are left (a test's limit); it would fit with config.optimizer.name = adafactor" in text
    assert "config.lora.rank = 16" in text
    assert not (tmp_path / "run" / "config.json").exists()
    monkeypatch.setattr("rmjax.training.datasets.load", fail)  # the state alone does not fit: no data is read
    little(3 << 30)
    with pytest.raises(InputError, match=r"training without activations \(memory\) needs about 3\.75 GiB .*adafactor"):
        train(tiny, tmp_path / "run", **QUIET)
    little(1 << 20)
    with pytest.raises(InputError, match="no setting was found with which it fits: use a smaller model"):
        train(tiny, tmp_path / "run", **QUIET)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.95, "it would fit with config.train.rows_per_device = 1"),
        (1.05, "warning: training (memory) needs about"),
        (2.0, "GiB are left (a test's limit)"),
    ],
)
def test_what_would_fit_is_named_and_what_nearly_fits_warns(tiny, little, share, expected):
    tiny.train.rows_per_device = 64
    mesh = make_mesh(devices=jax.devices()[:1])
    trainer, shape = make_trainer(tiny, mesh, 300), memory.Shape(64, 512, accumulates=True, saves=True)
    with jax.set_mesh(mesh):
        total = sum(memory.estimate(trainer, shape)[1].values())
        little(int(share * total))
        try:
            found = "\n".join(memory.check(tiny, trainer, shape, 100))
        except InputError as error:
            found = str(error)
        assert expected in found
        assert ("warning" in found) == (share == 1.05)
        # What is proposed fits.
        fewer = dataclasses.replace(shape, rows=1)
        assert sum(memory.estimate(trainer, fewer)[1].values()) < 0.95 * total


def test_a_model_that_does_not_fit_is_not_loaded(tmp_path, tiny, little, monkeypatch):
    train(tiny, tmp_path / "run", **QUIET)
    little(1000)
    with pytest.raises(InputError, match=r"loading .*run needs about .* \(parameters .*\), and 0\.0 MiB are left"):
        load_pipeline(str(tmp_path / "run"))
    monkeypatch.setenv("RMJAX_CHECK_MEMORY", "0")
    with pytest.warns(memory.memory.MemoryWarning, match="loading .*run needs about"):
        load_pipeline(str(tmp_path / "run"))
