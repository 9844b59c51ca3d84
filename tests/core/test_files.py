"""Atomic writes, JSON files, safetensors directories, and rules over pytree paths."""

import json
import os

import numpy as np
import pytest

from rmjax.core import pytree, safetensors
from rmjax.core.errors import InputError
from rmjax.core.files import read_json, write_atomic, write_together


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, '{"a": 1}')
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, '{"a": 2}')
    assert read_json(path) == {"a": 1}


def test_files_are_written_together(tmp_path, monkeypatch):
    read = lambda: {path.name: path.read_text() for path in tmp_path.iterdir()}
    old, new = ({name: f"{name} {number}" for name in ("mark", "b", "c")} for number in (1, 2))
    write_together(tmp_path, old)
    (tmp_path / ".c.part").mkdir()  # so that this file cannot be written
    with pytest.raises(IsADirectoryError, match=r"/c'"):
        write_together(tmp_path, new)
    (tmp_path / ".c.part").rmdir()
    assert read() == old
    replaced = []

    def killed(source, target):
        if replaced:
            raise SystemExit
        replaced.append(source.rename(target))

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(SystemExit):
        write_together(tmp_path, new)
    assert read() == {"b": "b 1", "c": "c 2"}  # without the first file
    monkeypatch.undo()
    write_together(tmp_path, new)
    assert read() == new


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "a.json: missing"), ("{", "a.json: not valid JSON"), ("[1]", "a.json: the JSON value is a list")],
)
def test_unreadable_json_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_json(tmp_path / "a.json")


@pytest.fixture
def tensors():
    return {f"t{i}": np.arange(6, dtype=np.float32).reshape(2, 3) + i for i in range(4)}


def write(directory, tensors):
    safetensors.write(directory, [(name, lambda x=x: x, x.nbytes) for name, x in tensors.items()])


@pytest.mark.parametrize(("limit", "shards"), [(1 << 20, 1), (48, 2), (1, 4)])
def test_tensors_survive_writing_and_reading_in_any_number_of_shards(tmp_path, tensors, monkeypatch, limit, shards):
    monkeypatch.setattr(safetensors, "SHARD_BYTES", limit)
    write(tmp_path, tensors)
    assert len(list(tmp_path.glob("*.safetensors"))) == shards
    assert (tmp_path / safetensors.INDEX).exists() == (shards > 1)
    directory = safetensors.TensorDirectory(tmp_path)
    assert directory.shapes == dict.fromkeys(tensors, (2, 3))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(directory.read(name), tensor)
        np.testing.assert_array_equal(directory.read(name, (slice(1, 2), slice(0, 2))), tensor[1:2, :2])


def test_a_damaged_directory_is_named(tmp_path, tensors, monkeypatch):
    with pytest.raises(InputError, match=r"model\.safetensors: missing; .* in safetensors: copy the directory again"):
        safetensors.TensorDirectory(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match=r"missing; .*: convert pytorch_model.bin: python -c "):
        safetensors.TensorDirectory(tmp_path)
    monkeypatch.setattr(safetensors, "SHARD_BYTES", 48)
    write(tmp_path, tensors)
    index = tmp_path / safetensors.INDEX
    content = json.loads(index.read_text())
    del content["weight_map"]["t3"]
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"the tensor 't3' is only in the index or only in the files \(1 in all\)"):
        safetensors.TensorDirectory(tmp_path)
    for text in ("{", "[]", '{"weight_map": ["t0"]}'):
        index.write_text(text)
        with pytest.raises(InputError, match=r"index\.json: not a safetensors index"):
            safetensors.TensorDirectory(tmp_path)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weights_follow_the_umask(tmp_path, tensors, monkeypatch, umask, mode):
    monkeypatch.setattr(safetensors, "SHARD_BYTES", 48)
    old = os.umask(umask)
    try:
        write(tmp_path, tensors)
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "this is a git-lfs pointer instead of the file; run `git lfs",
        ),
        (b"<html>", "this is an HTML page; download the file itself"),
        (b"{}", "truncated or not a safetensors file"),
    ],
)
def test_files_that_were_not_downloaded_are_named(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=rf"model\.safetensors: {message}"):
        safetensors.TensorDirectory(tmp_path)
    (tmp_path / "config.json").write_bytes(content.removesuffix(b"}"))
    with pytest.raises(InputError, match=rf"config\.json: ({message}|not valid JSON)"):
        read_json(tmp_path / "config.json")


def test_exactly_one_rule_must_match():
    rules = ((r"kernel$", 1), (r"^head", 2))
    assert pytree.match_one(rules, "layers/kernel", "sharding") == 1
    with pytest.raises(InputError, match=r"sharding rules: 'bias' must match exactly one rule, but matches none"):
        pytree.match_one(rules, "bias", "sharding")
    with pytest.raises(InputError, match=r"'head/kernel' .* but matches 'kernel\$', '\^head'"):
        pytree.match_one(rules, "head/kernel", "sharding")
