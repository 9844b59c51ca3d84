"""A training run of two processes, connected by jax.distributed over loopback."""

import shutil
import signal

import numpy as np
import pytest

from rmjax.training.experiment import train
from tests.pair import Pair, own_lines
from tests.training.conftest import tiny as tiny_config
from tests.training.test_experiment import lines, losses

STEPS = 12


def pair_of(config_file, workdir):
    return Pair(["rmjax.train", f"--config={config_file}", f"--workdir={workdir}"], workdir)


def save(config, directory):
    file = directory / "config_file.py"
    file.write_text(
        "import json\nfrom rmjax.core import config as configs\n\ndef get_config():\n"
        f"    c = configs.default()\n    c.update(json.loads({config.to_json()!r}))\n    return c\n"
    )
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A configuration file for two processes, its configuration, and workdir and outputs of an uninterrupted run."""
    path = tmp_path_factory.mktemp("pair")
    config = tiny_config.__wrapped__()
    config.mesh.data, config.mesh.fsdp = -1, 2
    config.train.steps = STEPS
    config.evaluation.every = STEPS // 3
    file = save(config, path)
    with pair_of(file, path / "whole") as pair:
        outputs = pair.finish()
    return file, config, path / "whole", outputs


def test_losses_equal_those_on_one_device(made, tmp_path):
    _, config, whole, _ = made
    config.mesh.data, config.mesh.fsdp = 1, 1
    train(config, tmp_path / "alone")
    np.testing.assert_allclose(losses(whole), losses(tmp_path / "alone"), atol=1e-5)


def test_only_the_first_process_writes_and_prints(made):
    _, _, whole, (first, second) = made
    assert [line["step"] for line in lines(whole, "train")] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines(whole, "validation")] == [0, STEPS // 3, 2 * STEPS // 3, STEPS]
    assert "'data': 2, 'fsdp': 2" in first
    assert f"done: {STEPS} steps" in first
    assert own_lines(second) == []


def test_a_signal_to_one_process_saves_and_the_run_resumes_bit_for_bit(made, tmp_path):
    """The processes see a signal to one of them within a second, and stop at one step."""
    config = made[1].copy_and_resolve_references()
    config.mesh.data, config.mesh.fsdp = -1, 2
    steps = config.train.steps = 100
    config.evaluation.every = 10
    file, workdir = save(config, tmp_path), tmp_path / "interrupted"
    with pair_of(file, tmp_path / "whole") as pair:
        pair.finish()
    metrics = workdir / "metrics.jsonl"
    with pair_of(file, workdir) as pair:
        pair.wait_until(lambda: metrics.exists() and '"split": "train"' in metrics.read_text())
        pair.processes[1].send_signal(signal.SIGTERM)
        assert "stopped at step" in pair.finish(128 + signal.SIGTERM)[0]
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert lines(workdir)[-1]["step"] == saved < steps
    with pair_of(file, workdir) as pair:
        assert f"resuming {workdir} at step {saved} of {steps}" in pair.finish()[0]
    assert lines(workdir) == lines(tmp_path / "whole")


def test_adapters_are_trained_and_resumed_by_two_processes(made, tmp_path):
    config = made[1].copy_and_resolve_references()
    config.mesh.data, config.mesh.fsdp, config.lora.rank = -1, 2, 4
    file = save(config, tmp_path)
    with pair_of(file, tmp_path / "run") as pair:
        assert " trained), float32" in pair.finish()[0]
    whole = lines(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(STEPS))
    with pair_of(file, tmp_path / "run") as pair:
        pair.finish()
    assert lines(tmp_path / "run") == whole
    config.mesh.data, config.mesh.fsdp = 1, 1
    train(config, tmp_path / "alone")
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "alone"), atol=1e-5)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(STEPS))
    assert train(config, tmp_path / "run").step == STEPS  # by one process, on another mesh
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "alone"), atol=1e-5)
