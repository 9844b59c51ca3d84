"""The memory-mapped cache of tokenized datasets."""

import errno
import json
import os
import threading

import numpy as np
import pytest

from rmjax.data.tokens import load
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer

PAIR = {"prompt": "Is it?", "chosen": " Yes.", "rejected": " No.", "subset": "chat"}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(PAIR | {"prompt": f"Is it {i}?"}) + "\n" for i in range(3)))
    return str(path)


@pytest.fixture
def run(source, tmp_path):
    tokenizer = Tokenizer.load("")
    return lambda: load.load_dataset(source, tokenizer, DatasetOptions(), split="train", cache_dir=tmp_path / "own")


def arrays(dataset: TokenizedDataset) -> dict:
    return {name: value for name, value in vars(dataset).items() if isinstance(value, np.ndarray)}


def assert_equal(one: TokenizedDataset, other: TokenizedDataset):
    for name, value in vars(one).items():
        np.testing.assert_array_equal(getattr(other, name), value, err_msg=name)
    assert (one.attributes, one.sources, one.subsets) == (other.attributes, other.sources, other.subsets)


def entries(tmp_path):
    return sorted((tmp_path / "own" / "tokens").iterdir())


def test_cached_dataset_is_equal_and_memory_mapped(run, source, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(load, "_write_cache", lambda *arguments: None)
        in_memory, report = run()
    assert not report.cached
    assert not any(isinstance(array, np.memmap) for array in arrays(in_memory).values())
    for cached in (False, True):
        dataset, report = run()
        assert report.cached is cached
        assert all(isinstance(array, np.memmap) for array in arrays(dataset).values())
        assert_equal(in_memory, dataset)
        assert dataset.fingerprint() == in_memory.fingerprint()
        assert dataset.where(2) == f"{source}:3"
        assert dataset.subset_names == ["chat"] * 3
    assert np.shares_memory(dataset.tree(1).prefix, dataset.tokens)
    assert len(entries(tmp_path)) == 1


def test_changed_source_is_tokenized_again(run, source):
    run()
    with open(source, "a") as file:
        file.write(json.dumps(PAIR) + "\n")
    dataset, report = run()
    assert (len(dataset), report.cached) == (4, False)


@pytest.mark.parametrize("name", ["tokens.npy", "edges.npy", "token_offsets.npy", "dataset.json"])
@pytest.mark.parametrize("size", [-1, 60, 0, None], ids=["last byte", "header", "empty", "missing"])
def test_damaged_entry_is_rebuilt(run, tmp_path, name, size):
    first, _ = run()
    expected = first.fingerprint()
    file = entries(tmp_path)[0] / name
    content = file.read_bytes()
    file.unlink()  # `first` keeps its mapping
    if size is not None:
        file.write_bytes(content[:size])
    rebuilt, report = run()
    assert (report.cached, report.cache_error) == (False, "")
    assert rebuilt.fingerprint() == expected
    assert run()[1].cached
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("damaged", [False, True])
def test_two_writers_at_once_leave_one_valid_entry(run, tmp_path, monkeypatch, damaged):
    if damaged:
        run()
        os.truncate(entries(tmp_path)[0] / "tokens.npy", 10)
    barrier, rename, results = threading.Barrier(2, timeout=60), os.rename, []

    def rename_together(*paths):
        barrier.wait()
        rename(*paths)

    monkeypatch.setattr(load.os, "rename", rename_together)
    threads = [threading.Thread(target=lambda: results.append(run())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(report.cached, report.cache_error) for _, report in results] == [(False, "")] * 2
    assert_equal(results[0][0], results[1][0])
    assert run()[1].cached
    assert len(entries(tmp_path)) == 1


def test_full_disk_is_reported_and_not_fatal(run, tmp_path, monkeypatch):
    def save(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(load.np, "save", save)
    dataset, report = run()
    assert len(dataset) == 3
    assert "tokens not cached ([Errno 28] No space left on device)" in str(report)
    assert entries(tmp_path) == []


def test_unwritable_directory_is_reported_and_not_fatal(source, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    dataset, report = load.load_dataset(
        source, Tokenizer.load(""), DatasetOptions(), split="train", cache_dir=tmp_path / "file"
    )
    assert len(dataset) == 3
    assert "tokens not cached" in str(report)
