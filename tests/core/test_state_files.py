"""Checked reading of state files, sealed JSON files, and checksums of directories."""

import json
import random

import pytest

from rmjax.core import state_files
from rmjax.core.errors import InputError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "missing"),
        ("", "not valid JSON"),
        ('{"train": "ab', "not valid JSON"),
        ("[1]", "is a list; expected an object"),
        ("{}", "'train' is missing; expected a value of type str"),
        ('{"train": 3}', "'train' is 3; expected a value of type str"),
        ("\xff", "not valid JSON"),
        ('{"train": "a", "train": "b"}', "the key 'train' is twice in one object"),
    ],
)
def test_an_unusable_file_is_named(tmp_path, text, message):
    path = tmp_path / "data.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=rf"data\.json: .*{message}"):
        state_files.read_object(path, {"train": str})


def test_no_flipped_bit_of_a_sealed_file_changes_what_is_read(tmp_path):
    path, value = tmp_path / "sealed.json", {"path": "/a b", "numbers": [1.5, -2e-7, None], "é": {"x": True}}
    state_files.write_sealed(path, value)
    whole, found = path.read_bytes(), 0
    assert state_files.read_sealed(path) == value
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= 1 << random.Random(position).randrange(8)
        path.write_bytes(content)
        try:
            read = state_files.read_sealed(path)
        except InputError:
            found += 1
        else:  # white space, or the name of the checksum itself
            assert {key: read.get(key) for key in value} == value
    assert found > 0.6 * len(whole)


def test_changed_cut_and_missing_files_of_a_directory_are_found(tmp_path):
    names = ["a", "folder/b", "folder/c"]
    (tmp_path / "folder").mkdir()
    for name in names:
        (tmp_path / name).write_text(name * 1000)
    state_files.write_sums(tmp_path, state_files.file_sums(tmp_path, without=["folder/c"]))
    assert list(state_files.read_sums(tmp_path)["files"]) == ["a", "folder/b"]
    state_files.check_files(tmp_path)
    (tmp_path / "folder/c").write_text("not verified")
    state_files.check_files(tmp_path)
    (tmp_path / "folder/b").write_text("folder/B" * 1000)
    state_files.check_files(tmp_path, "a")
    with pytest.raises(InputError, match=r"folder/b does not have its checksum: damaged or edited"):
        state_files.check_files(tmp_path)
    (tmp_path / "a").write_text("a")
    with pytest.raises(InputError, match=r"/a has 1 bytes instead of 1,000"):
        state_files.check_files(tmp_path, "a")
    (tmp_path / "a").unlink()
    with pytest.raises(InputError, match=r"/a cannot be read \(No such file"):
        state_files.check_files(tmp_path, "a")
    # Shares of several readers cover all files.
    shares = [state_files.find_damage(tmp_path, state_files.read_sums(tmp_path), share=(i, 2)) for i in range(2)]
    assert sorted(map(len, shares)) == [1, 1]
    (tmp_path / "sums.json").unlink()
    with pytest.warns(state_files.StateWarning, match="without checksums"):
        state_files.check_files(tmp_path)


def test_a_torn_last_line_is_left_out_and_another_one_is_an_error(tmp_path):
    path = tmp_path / "lines.jsonl"
    lines = [json.dumps({"step": step}) + "\n" for step in range(4)]
    path.write_text("".join(lines) + '{"step": 4')
    assert [line["step"] for line in state_files.read_lines(path, {"step": int})] == [0, 1, 2, 3]
    for damaged in (lines[1][:5] + "\n", '{"stop": 1}\n', "\n", "3\n", '{"step": 1, "step": 2}\n'):
        path.write_text(lines[0] + damaged + lines[2])
        with pytest.raises(InputError, match=r"lines\.jsonl:2: a damaged line"):
            state_files.read_lines(path, {"step": int})


def test_the_sum_of_a_beginning_is_that_of_the_same_text(tmp_path):
    text = "é" * 3_000_000
    (tmp_path / "text").write_text(text)
    assert state_files.file_sum(tmp_path / "text") == state_files.text_sum(text)
    assert state_files.file_sum(tmp_path / "text", 20) == state_files.text_sum("é" * 10)
