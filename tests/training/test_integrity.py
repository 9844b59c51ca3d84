"""Damaged, cut, edited and missing files of a run: found at each load, and an intact checkpoint is used."""

import contextlib
import json
import math
import shutil
import warnings

import chex
import jax
import jax.numpy as jnp
import pytest

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.core.state_files import StateWarning
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.models.workdir import Workdir
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.experiment import train
from rmjax.training.export import export
from rmjax.training.logging import read_metrics
from tests.training.test_experiment import lines

FROZEN = "^head/|layers/"  # a part of the parameters is frozen, so that there is a frozen.json
QUIET = {"log": lambda line: None, "progress": False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A complete run of 6 steps with checkpoints at steps 3 and 6."""
    from tests.training.conftest import tiny

    config, path = tiny.__wrapped__(), tmp_path_factory.mktemp("whole") / "run"
    config.train.trainable = FROZEN
    with warnings.catch_warnings():
        warnings.simplefilter("error", StateWarning)  # an intact run has none
        train(config, path, **QUIET)
        train(config, path, **QUIET)
        load_pipeline(str(path))
    return path


@pytest.fixture
def run(tiny, whole, tmp_path):
    """(configuration, copy of the run)."""
    tiny.train.trainable = FROZEN
    shutil.copytree(whole, tmp_path / "run")
    return tiny, tmp_path / "run"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def arrays(run, step):
    """The largest file of a checkpoint's arrays."""
    files = (run / "checkpoints" / str(step) / "state").rglob("d/*")
    return max(files, key=lambda path: path.stat().st_size)


def params(path):
    return jax.device_get(load_pipeline(str(path)).scorer.params)


def test_a_flipped_bit_in_the_arrays_is_found_and_the_run_repeats_its_steps(run, whole, tmp_path):
    config, path = run
    flip(arrays(path, 6))
    damaged = r"checkpoints/6/state/.* does not have its checksum: this checkpoint is damaged; "
    with pytest.warns(StateWarning, match=damaged + "the one at step 3 is used instead"):
        assert load_pipeline(str(path)).metadata["source_step"] == 3
    with pytest.warns(StateWarning, match=damaged + "the one at step 3 is used instead"):
        assert export(path, tmp_path / "artifact")["source_step"] == 3
    with pytest.warns(StateWarning, match=damaged + "moved to .*checkpoints/damaged/6"):
        train(config, path, **QUIET)
    assert {child.name for child in (path / "checkpoints").iterdir()} == {"3", "6", "damaged"}
    assert lines(path) == lines(whole)
    chex.assert_trees_all_equal(params(path), params(whole))


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("change", [_cut, _empty, flip, lambda path: path.unlink()], ids=["cut", "empty", "flip", "rm"])
@pytest.mark.parametrize("name", ["metrics/metrics", "sums.json", "state/_METADATA"])
def test_each_file_of_a_checkpoint_is_checked(run, name, change):
    _, path = run
    change(path / "checkpoints" / "6" / name)
    with pytest.warns(StateWarning, match=f"checkpoints/6/{name}.*: this checkpoint is damaged; the one at step 3"):
        assert load_pipeline(str(path)).metadata["source_step"] == 3


def test_damaged_metrics_of_an_earlier_checkpoint_do_not_stop_the_run(run):
    config, path = run
    _cut(path / "checkpoints/3/metrics/metrics")
    with pytest.warns(StateWarning, match=r"checkpoints/3/metrics/metrics has .* moved to .*damaged/3"):
        assert train(config, path, **QUIET).step == 6


def test_without_an_intact_checkpoint_nothing_is_trained_or_removed(run):
    config, path = run
    for step in (3, 6):
        flip(arrays(path, step))
    for read in (lambda: train(config, path, **QUIET), lambda: load_pipeline(str(path))):
        with pytest.raises(InputError, match=r"none of (its|the) checkpoints is intact: .*/6/.*; .*/3/"):
            read()
    assert {child.name for child in (path / "checkpoints").iterdir()} == {"3", "6"}


@pytest.mark.parametrize("change", [flip, _empty, lambda path: path.unlink()], ids=["flip", "empty", "rm"])
@pytest.mark.parametrize(
    "name", ["config.json", "model.json", "head.json", "data.json", "tokenizer/tokenizer.json", "frozen.json"]
)
def test_each_state_file_of_a_workdir_is_checked(run, name, change):
    config, path = run
    change(path / name)
    # Without model.json it is not recognized as a workdir; the hash of the data matters to training alone.
    if name != "data.json":
        with pytest.raises(InputError):
            load_pipeline(str(path))
    with pytest.raises(InputError, match=name if (path / "model.json").exists() else "not of a training run"):
        train(config, path, **QUIET)


def test_a_workdir_without_checksums_is_read_with_one_warning(run, whole):
    config, path = run
    for file in path.rglob("sums.json"):
        file.unlink()
    for read in (lambda: params(path), lambda: train(config, path, **QUIET)):
        with pytest.warns(StateWarning, match="written by an older version of rmjax, without checksums") as caught:
            read()
        assert len({str(warning.message) for warning in caught}) == 1
    chex.assert_trees_all_equal(params(path), params(whole))


def test_metrics_with_a_torn_line_are_an_error_and_with_an_edited_one_a_warning(run):
    config, path = run
    metrics = path / "metrics.jsonl"
    texts = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*texts[:2], texts[2][:20] + "\n", *texts[3:]]))
    with pytest.raises(InputError, match=r"metrics\.jsonl:3: a damaged line"):
        train(config, path, **QUIET)
    metrics.write_text("".join(texts).replace('"step": 2', '"step": 1'))
    with pytest.warns(StateWarning, match=r"metrics\.jsonl has changed since the checkpoint at step 6 was saved"):
        train(config, path, **QUIET)
    assert len(read_metrics(metrics, 6)) == len(texts)


def test_warnings_of_orbax_are_not_shown(run, caplog):
    config, path = run
    (path / "checkpoints" / "6" / "_CHECKPOINT_METADATA").unlink()
    train(config, path, **QUIET)
    assert [record.getMessage() for record in caplog.records if "orbax" in record.pathname] == []


def test_the_data_order_is_that_of_the_step(run, whole):
    """No position of the data iterator is stored that could differ from the step; a step's state is not another's."""
    config, path = run
    assert not list(path.rglob("iterator"))
    shutil.rmtree(path / "checkpoints" / "3")
    (path / "checkpoints" / "6").rename(path / "checkpoints" / "3")
    with pytest.raises(InputError, match=r"checkpoints/3 holds the state of step 6"):
        train(config, path, **QUIET)


def test_a_run_killed_before_its_first_checkpoint_writes_no_line_twice(run, whole):
    config, path = run
    shutil.rmtree(path / "checkpoints")
    train(config, path, **QUIET)
    assert lines(path) == lines(whole)


def test_a_run_without_its_configuration_is_not_begun_again(run):
    config, path = run
    (path / "config.json").unlink()
    with pytest.raises(InputError, match=r"it has checkpoints, but config\.json is missing"):
        train(config, path, **QUIET)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, value):
    checkpoints = Checkpoints(Workdir(tmp_path), 2, "")
    state = {"step": jnp.int32(7), "params": {"a": jnp.ones(3), "b": jnp.ones(3).at[1].set(value)}, "frozen": {}}
    with contextlib.closing(checkpoints):
        with pytest.raises(
            InputError, match=r"step 7: params/b is not finite after the update \(1 array .*no checkpoint is saved"
        ):
            checkpoints.save(7, state, None)
        assert checkpoints.latest() is None
    assert not list((tmp_path / "checkpoints").glob("7*"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("key", ["optimizer.learning_rate", "model.rope_theta", "data.weights"])
def test_numbers_that_are_not_finite_are_refused(tiny, tmp_path, key, value):
    section, name = key.split(".")
    tiny[section][name] = (1.0, value) if name == "weights" else value
    with pytest.raises(InputError, match=rf"config\.{key} is .*{value}.*; expected a finite number"):
        train(tiny, tmp_path / "run", **QUIET)


@pytest.mark.parametrize("metrics", [{"accuracy": math.nan}, {"accuracy": 0.9, "loss": math.nan}, {"loss": math.inf}])
def test_metrics_that_are_not_finite_never_win(metrics):
    assert configs.selection_score(metrics, "") < configs.selection_score({"accuracy": 0.1, "loss": 9.0}, "")
    assert configs.selection_score(metrics, "") < configs.selection_score({"loss": 1e9}, "")


def test_the_best_step_has_finite_metrics(run):
    _, path = run
    (path / "sums.json").unlink()
    for step, accuracy in ((3, 0.1), (6, math.nan)):
        (path / f"checkpoints/{step}/sums.json").unlink()
        (path / f"checkpoints/{step}/metrics/metrics").write_text(json.dumps({"accuracy": accuracy}))
    with pytest.warns(StateWarning):
        assert Workdir(path).best_step() == 3


def test_an_artifact_is_checked_with_its_metadata(run, tmp_path):
    _, path = run
    artifact = tmp_path / "artifact"
    export(path, artifact)
    whole = (artifact / "rmjax.json").read_text()
    for old, new, message in (
        ('"max_length": ', '"max_length": 1', "damaged or edited"),
        ('"sha256"', '"sha255"', "damaged or edited"),
        (whole, "{}", "'format_version' is missing"),
        (whole, '{"format_version": 1}', "'sha256' is missing"),
        (whole, '{"format_version": 1, "sha256": {}, "pooling": null}', "pooling is None; choose one of last_token, "),
    ):
        assert old in whole
        (artifact / "rmjax.json").write_text(whole.replace(old, new))
        with pytest.raises(InputError, match=rf"rmjax\.json: .*{message}"):
            load_pipeline(str(artifact))
