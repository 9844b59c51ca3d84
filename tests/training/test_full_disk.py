"""Writes that fail: an error with path, reason and remedy, nothing left, and the same call succeeds later.

The limit of the size of files stands for a full disk; `experiments/faults.py --disks` fills real ones.
"""

import contextlib
import errno
import os
import resource

import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.models.workdir import Workdir
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.experiment import train
from rmjax.training.export import export

REASON = r"the file would exceed the limit of its size; raise it \(ulimit -f\), or choose another path"


@contextlib.contextmanager
def limited(size):
    """Limits the size of files to `size` bytes."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of Orbax's other threads
def test_a_checkpoint(tmp_path):
    values = np.random.default_rng(0).normal(size=100_000)
    state = {"step": jnp.int32(7), "params": {"a": jnp.asarray(values, jnp.float32)}, "frozen": {}}
    (tmp_path / "metrics.jsonl").touch()
    checkpoints = Checkpoints(Workdir(tmp_path), 2, "")
    with limited(50_000):
        checkpoints.save(7, state, None)
        with pytest.raises(InputError, match=rf"^saving .*checkpoints/7: {REASON}"):
            checkpoints.close()
    assert names(tmp_path / "checkpoints") == []
    with contextlib.closing(Checkpoints(Workdir(tmp_path), 2, "")) as again:
        again.save(7, state, None)
    assert names(tmp_path / "checkpoints") == ["7"]


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_tokenizer_and_an_artifact(tiny, tmp_path, monkeypatch):
    tiny.train.steps = tiny.evaluation.every = 1
    run, artifact = tmp_path / "run", tmp_path / "artifact"
    train(tiny, run, log=lambda line: None, progress=False)
    tokenizer = Tokenizer.load(str(run / "tokenizer"))
    with limited(1000), pytest.raises(InputError, match=rf"^saving .*other: {REASON}"):
        tokenizer.save(tmp_path / "other")
    for size in (1, 20_000):
        with (
            limited(size),
            pytest.raises(InputError, match=rf"^[^ ]*{artifact}.*: {REASON}|^saving .*artifact.*: {REASON}"),
        ):
            export(run, artifact)
    with monkeypatch.context() as patched:
        patched.setattr("rmjax.models.artifact.write", full)  # an error without a path
        with pytest.raises(InputError, match=rf"^{artifact}: the disk is full; free space, and run the same command"):
            export(run, artifact)
    assert names(tmp_path) == ["other", "run"]
    export(run, artifact)
    load_pipeline(str(artifact))
    assert names(tmp_path) == ["artifact", "other", "run"]
