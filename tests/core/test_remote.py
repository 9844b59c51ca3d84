"""Files and directories at URLs: downloaded once, again when they change, with transient errors tried again."""

import json
import pathlib

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rmjax.core import config as configs
from rmjax.core import remote
from rmjax.core.errors import InputError
from rmjax.core.locks import hold
from rmjax.data.records.report import ReadReport
from rmjax.data.records.sources import find_sources
from rmjax.models.paths import resolve_path
from rmjax.training.experiment import train

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.fixture
def store(monkeypatch):
    """An empty object store at memory://."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(remote, "_WAIT", 0.0)
    return fsspec.filesystem("memory")


@pytest.fixture
def failures(monkeypatch):
    """Makes the next downloads fail with the given errors; a list."""
    errors, get_file = [], MemoryFileSystem.get_file

    def flaky(self, *arguments, **options):
        if errors:
            raise errors.pop(0)
        return get_file(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", flaky)
    return errors


def put(store, path, *records):
    store.pipe_file(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def test_data_is_read_and_named_by_its_url(store):
    put(store, "/bucket/a.jsonl", PAIR, PAIR)
    put(store, "/bucket/b.jsonl", PAIR)
    sources = find_sources(["test=memory:///bucket/*.jsonl"])
    assert [str(source) for source in sources] == ["test=memory:///bucket/a.jsonl", "test=memory:///bucket/b.jsonl"]
    assert [where for where, _ in sources[0].records(ReadReport())] == [
        "memory:///bucket/a.jsonl:1",
        "memory:///bucket/a.jsonl:2",
    ]


def test_a_copy_is_kept_until_the_object_changes(store, failures):
    put(store, "/bucket/a.jsonl", PAIR)
    first = remote.fetch("memory:///bucket/a.jsonl")
    failures.append(AssertionError("it is downloaded again"))
    assert remote.fetch("memory:///bucket/a.jsonl") == first
    failures.clear()
    put(store, "/bucket/a.jsonl", PAIR, PAIR)
    second = remote.fetch("memory:///bucket/a.jsonl")
    assert len(second.read_text().splitlines()) == 2
    assert first != second


def test_transient_errors_are_tried_again_and_others_are_not(store, failures):
    put(store, "/bucket/a.jsonl", PAIR)
    failures += [ConnectionResetError("reset"), TimeoutError("slow"), OSError("503")]
    assert json.loads(remote.fetch("memory:///bucket/a.jsonl").read_text()) == PAIR
    assert not failures
    put(store, "/bucket/a.jsonl", PAIR, PAIR)
    failures += [TimeoutError("slow")] * 9
    with pytest.raises(InputError, match=r"memory:///bucket/a.jsonl: cannot be read \(slow\); try again later"):
        remote.fetch("memory:///bucket/a.jsonl")
    assert len(failures) == 4
    failures[:] = [PermissionError("403"), AssertionError("it is tried again")]
    with pytest.raises(InputError, match=r"cannot be read \(403\); check the credentials"):
        remote.fetch("memory:///bucket/a.jsonl")


def test_a_directory_is_copied_whole_or_not_at_all(store, failures, tmp_path, monkeypatch):
    monkeypatch.setenv("RMJAX_CACHE", str(tmp_path / "cache"))
    put(store, "/bucket/model/config.json", {"model_type": "llama"})
    put(store, "/bucket/model/tokenizer/tokenizer.json", {})
    failures += [PermissionError("403")]
    with pytest.raises(InputError, match="check the credentials"):
        resolve_path("memory:///bucket/model")
    assert not [path for path in (tmp_path / "cache" / "remote").iterdir() if path.suffix != ".lock"]
    local = resolve_path("memory:///bucket/model")
    assert {str(path.relative_to(local)) for path in local.rglob("*.json")} == {
        "config.json",
        "tokenizer/tokenizer.json",
    }
    store.pipe_file("/bucket/model/../evil.json", b"{}")
    with pytest.raises(InputError, match="leads out of the directory"):
        resolve_path("memory:///bucket/model")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory:///bucket/none.jsonl", "memory:///bucket/none.jsonl: no such file or directory"),
        ("memory:///bucket/*.jsonl", r"memory:///bucket/\*.jsonl: no file matches this glob"),
        ("nosuch://bucket/a.jsonl", "the package for nosuch:// is missing; see fsspec's list of protocols"),
    ],
)
def test_what_cannot_be_found_is_named(store, url, message):
    with pytest.raises(InputError, match=message):
        find_sources(url)


def test_results_are_not_written_to_a_url():
    message = "output=gs:/bucket/scores: results are written to file systems, not to URLs"
    with pytest.raises(InputError, match=message), hold(pathlib.Path("gs://bucket/scores"), "output", directory=True):
        pass


def test_a_url_that_cannot_be_opened_is_named():
    with pytest.raises(InputError, match=r"zip://a.zip: cannot be opened"):
        train(configs.small(), "zip://a.zip", progress=False)
