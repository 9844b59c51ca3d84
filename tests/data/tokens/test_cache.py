"""The memory-mapped cache of tokenized datasets."""

import errno
import json
import os
import threading

import numpy as np
import pytest

from rmjax.data.tokens import cache, load, spool, stream
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
    return sorted(path for path in (tmp_path / "own" / "tokens").iterdir() if path.suffix != ".lock")


def test_cached_dataset_is_equal_and_memory_mapped(run, source, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(load, "TokenSpool", lambda path: spool.TokenSpool(None))
        patch.setattr(cache, "read", lambda path: None)
        patch.setattr(cache, "write", lambda *arguments: None)
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


def test_a_source_that_changes_while_it_is_read_is_not_cached(run, source, monkeypatch, tmp_path):
    def append_and_tokenize(*arguments, **options):
        result = stream.tokenize_stream(*arguments, **options)
        with open(source, "a") as file:
            file.write(json.dumps(PAIR) + "\n")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(load, "tokenize_stream", append_and_tokenize)
        dataset, report = run()
    assert (len(dataset), report.cache_error) == (3, "the source changed while it was read")
    assert entries(tmp_path) == []
    assert len(run()[0]) == 4


def test_what_is_left_out_is_part_of_the_key(source, tmp_path):
    bench = tmp_path / "bench.jsonl"
    questions = [f"Is it {i}?" for i in range(3)]

    def run(**options):
        options = DatasetOptions(**options)
        return load.load_dataset(source, Tokenizer.load(""), options, split="train", cache_dir=tmp_path / "own")

    def check(expected, **options):
        for cached in (False, True):
            dataset, report = run(**options)
            assert (report.kept, report.cached) == (len(dataset), cached)
            assert [int(line) for line in dataset.line] == expected
        return report

    check([1, 2, 3])
    bench.write_text(json.dumps({"prompt": questions[0]}) + "\n")
    report = check([2, 3], exclude=(str(bench),))
    assert f"2 comparisons of 3 records (pairs, tokens from cache); 1 skipped (prompt in {bench})" in str(report)
    assert report.causes() == [f"1 record skipped (first: {source}:1: its prompt is that of {bench}:1)"]
    bench.write_text(json.dumps({"prompt": questions[1]}) + "\n")
    check([1, 3], exclude=(str(bench),))
    with open(source, "a") as file:
        file.write(json.dumps(PAIR | {"prompt": questions[2]}) + "\n")
    check([1, 3, 4], exclude=(str(bench),))
    check([1, 2, 3], duplicates="drop")
    check([1, 3], exclude=(str(bench),), duplicates="drop")


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


def run_twice_at_once(run):
    """Returns the results of two concurrent runs."""
    results = []
    threads = [threading.Thread(target=lambda: results.append(run())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_equal(results[0][0], results[1][0])
    return results


def test_of_two_runs_at_once_one_tokenizes_and_the_other_waits(run, tmp_path, monkeypatch, capsys):
    calls, wait = [], threading.Event()

    def tokenize_stream(*arguments, **options):
        calls.append(arguments)
        wait.wait(60)
        return stream.tokenize_stream(*arguments, **options)

    monkeypatch.setattr(load, "tokenize_stream", tokenize_stream)
    monkeypatch.setattr(load, "write_line", lambda log, line: (log(line), wait.set()))
    results = run_twice_at_once(run)
    assert sorted(report.cached for _, report in results) == [False, True]
    assert len(calls) == 1
    assert "a.jsonl: waiting for another process that tokenizes it" in capsys.readouterr().out


@pytest.mark.parametrize("damaged", [False, True])
def test_two_writers_without_locks_leave_one_valid_entry(run, tmp_path, monkeypatch, damaged):
    if damaged:
        run()
        os.truncate(entries(tmp_path)[0] / "tokens.npy", 10)
    barrier, rename = threading.Barrier(2, timeout=60), os.rename

    def no_locks(*arguments, **options):
        raise NotImplementedError

    def rename_together(*paths):
        barrier.wait()
        rename(*paths)

    monkeypatch.setattr(cache.filelock.FileLock, "acquire", no_locks)
    monkeypatch.setattr(cache.os, "rename", rename_together)
    results = run_twice_at_once(run)
    assert [(report.cached, report.cache_error) for _, report in results] == [(False, "")] * 2
    assert run()[1].cached
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("writes", [0, 2, 3, 4, 100])
def test_full_disk_is_reported_and_not_fatal(run, source, tmp_path, monkeypatch, writes):
    """The disk is full after a number of writes: at the header, the tokens of a chunk, the last header, and later."""
    monkeypatch.setattr(stream, "_CHUNK", 1)
    expected = run()[0]
    expected = {name: np.array(array) for name, array in arrays(expected).items()}
    with open(source, "a") as file:
        file.write("\n")  # a new entry
    write = spool._write

    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def count_down(*arguments):
        nonlocal writes
        writes -= 1
        return (write if writes >= 0 else fail)(*arguments)

    monkeypatch.setattr(spool, "_write", count_down)
    monkeypatch.setattr(cache.np, "save", fail)
    dataset, report = run()
    for name, array in expected.items():
        np.testing.assert_array_equal(getattr(dataset, name), array, err_msg=name)
    assert "tokens not cached ([Errno 28] No space left on device)" in str(report)
    assert len(entries(tmp_path)) == 1  # of the first run


def test_unwritable_directory_is_reported_and_not_fatal(source, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    dataset, report = load.load_dataset(
        source, Tokenizer.load(""), DatasetOptions(), split="train", cache_dir=tmp_path / "file"
    )
    assert len(dataset) == 3
    assert "tokens not cached" in str(report)
