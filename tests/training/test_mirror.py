"""Workdirs in an object store: the copy of a run, resuming elsewhere, and what a store may do meanwhile."""

import os
import pathlib
import shutil
import signal

import fsspec
import jax
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import rmjax
from rmjax.core import remote
from rmjax.core.errors import InputError
from rmjax.core.state_files import SUMS_FILE
from rmjax.training import mirror
from rmjax.training.logging import MetricsWriter

URL = "memory://bucket/run"
MESSAGES = [[{"role": "user", "content": "2+2"}, {"role": "assistant", "content": text}] for text in ("4", "5")]


@pytest.fixture
def store(monkeypatch):
    """An empty object store at memory://, which is looked at often."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(remote, "_WAIT", 0.0)
    monkeypatch.setattr(mirror, "_INTERVAL", 0.05)
    return fsspec.filesystem("memory")


@pytest.fixture
def other_machine(monkeypatch, tmp_path):
    """Returns a function that changes to a machine without copies."""
    return lambda: monkeypatch.setenv("RMJAX_CACHE", str(tmp_path / "other"))


class StopAtThree(MetricsWriter):
    """Sends SIGTERM to the process after step 3."""

    def __init__(self, *_):
        pass

    def write(self, step, split, metrics):
        if (step, split) == (3, "train"):
            os.kill(os.getpid(), signal.SIGTERM)


def files_of(store):
    return {name.removeprefix("/bucket/run/"): content.getvalue() for name, content in store.store.items()}


def local_files():
    directory = mirror.local_directory(URL)
    paths = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items()}


def losses(run):
    return [(line["step"], line["loss"]) for line in run.history if line["split"] == "train"]


def test_a_run_at_a_url_is_copied_into_the_store(tiny, store, tmp_path, other_machine):
    expected = rmjax.train(tiny, workdir=tmp_path / "local")
    run = rmjax.train(tiny, workdir=URL)
    found = files_of(store)
    found.pop(".mirror.json")
    assert found == local_files()
    assert losses(run) == losses(expected)
    steps = {name.split("/")[1] for name in found if name.startswith("checkpoints/")}
    assert steps == {path.name for path in (run.workdir / "checkpoints").iterdir()}
    other_machine()
    reference = rmjax.load(tmp_path / "local")
    assert [float(rmjax.load(URL).score(one)) for one in MESSAGES] == [float(reference.score(one)) for one in MESSAGES]


@pytest.mark.parametrize("where", ["same machine", "other machine"])
def test_a_run_is_resumed_from_the_store(tiny, store, tmp_path, other_machine, monkeypatch, where):
    tiny.checkpoint.every = 1
    expected = rmjax.train(tiny, workdir=tmp_path / "local")
    stopped = rmjax.train(tiny, workdir=URL, writers=(StopAtThree,))
    assert stopped.stopped
    assert stopped.step < 6
    if where == "other machine":
        other_machine()
    downloads, get_file = [], MemoryFileSystem.get_file
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda self, *a: downloads.append(a) or get_file(self, *a))
    run = rmjax.train(tiny, workdir=URL)
    assert (len(downloads) > 0) == (where == "other machine")
    assert losses(run) == losses(expected)


def test_a_checkpoint_that_is_not_complete_in_the_store_is_not_used(tiny, store, other_machine):
    rmjax.train(tiny, workdir=URL)
    store.rm_file(f"/bucket/run/checkpoints/6/{SUMS_FILE}")
    other_machine()
    lines = []
    rmjax.training.experiment.train(tiny, URL, log=lines.append)
    assert any("resum" in line and "step 3" in line for line in lines)
    found = files_of(store)
    found.pop(".mirror.json")
    assert found == local_files()


def test_a_failed_upload_loses_nothing(tiny, store, monkeypatch):
    put_file = MemoryFileSystem.put_file

    def fail(self, source, target, *arguments, **options):
        if "/checkpoints/" in target:
            raise OSError("503 Slow Down")
        return put_file(self, source, target, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", fail)
    with pytest.raises(InputError, match=r"cannot be written \(503 Slow Down\); .* The run is complete in .*workdirs"):
        rmjax.train(tiny, workdir=URL)
    assert not any(name.startswith("checkpoints/") for name in files_of(store))
    monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
    assert rmjax.train(tiny, workdir=URL).step == 6
    found = files_of(store)
    found.pop(".mirror.json")
    assert found == local_files()


def test_two_writers_are_noticed(tiny, store, monkeypatch):
    class Other(MetricsWriter):
        """Another machine, which writes its marker."""

        def __init__(self, *_):
            store.pipe_file("/bucket/run/.mirror.json", b'{"marker": "other"}')

        def write(self, step, split, metrics):
            pass

    with pytest.raises(InputError, match=r"memory://bucket/run: another process writes to it"):
        rmjax.train(tiny, workdir=URL, writers=(Other,))


def test_an_error_of_the_run_is_raised_and_its_files_are_there(tiny, store):
    class Failing(MetricsWriter):
        """Fails at step 5."""

        def __init__(self, *_):
            pass

        def write(self, step, split, metrics):
            if step == 5:
                raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        rmjax.train(tiny, workdir=URL, writers=(Failing,))
    assert f"checkpoints/3/{SUMS_FILE}" in files_of(store)


def test_what_cannot_be_a_workdir_is_refused_before_the_run(tiny, store, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"expected|cannot be written|missing"):
        rmjax.train(tiny, workdir="https://127.0.0.1:9/run")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="a run of 2 processes needs a shared file system"), mirror.mirrored(URL):
        pass
    monkeypatch.undo()
    with mirror.mirrored("~/x") as path:
        assert path == pathlib.Path.home() / "x"


def test_a_store_that_was_emptied_begins_again(tiny, store):
    rmjax.train(tiny, workdir=URL)
    store.store.clear()
    tiny.train.seed = 1
    assert rmjax.train(tiny, workdir=URL).step == 6
    shutil.rmtree(mirror.local_directory(URL))
