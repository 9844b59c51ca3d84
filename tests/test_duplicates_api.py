"""Duplicates and overlap from Python and from the program: the same numbers, which training leaves out."""

import importlib
import json
import re

import pytest

import rmjax
from rmjax.data.curation.selection import Curation
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons

program = importlib.import_module("rmjax.describe")  # `rmjax.describe` is the function of that name

QUESTION = "Which of the rivers of this continent is the longest one, and through which countries does it flow?"
RECORDS = [
    {"prompt": QUESTION, "chosen": " one", "rejected": " two"},
    {"prompt": QUESTION, "chosen": " one", "rejected": " two"},
    {"prompt": QUESTION.replace("rivers", "streams"), "chosen": " one", "rejected": " two"},
    {"prompt": "How high is it?", "chosen": " one", "rejected": " two"},
    {"prompt": "How deep is it?", "chosen": " two", "rejected": " one"},
]
BENCH = [{"prompt": QUESTION.upper()}, {"prompt": [{"role": "user", "content": "How high is it"}]}]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(autouse=True)
def _flags_as_before():
    yield
    program.FLAGS.values.unparse_flags()


def test_numbers_from_python():
    report = rmjax.find_duplicates(RECORDS, BENCH)
    assert (report.comparisons, report.same, report.near, report.prompts, report.similar_prompts) == (5, 1, 1, 4, 1)
    (overlap,) = report.overlaps
    assert (overlap.name, overlap.same, overlap.same_prompt, overlap.similar_prompt) == ("records", 0, 3, 1)
    assert rmjax.find_duplicates(RECORDS, BENCH, similarity=1.0).overlaps[0].similar_prompt == 0
    assert rmjax.find_duplicates(RECORDS).overlaps == []
    with pytest.raises(rmjax.InputError, match="chosen is 3"):
        rmjax.find_duplicates([*RECORDS, {"prompt": "p", "chosen": 3, "rejected": " x"}])
    assert rmjax.find_duplicates([*RECORDS, {"prompt": "p", "chosen": 3, "rejected": " x"}], on_bad_record="skip") == (
        rmjax.find_duplicates(RECORDS)
    )


def test_the_program_prints_the_report_and_training_leaves_out_as_many(tmp_path, capsys):
    train, bench = write(tmp_path / "train.jsonl", RECORDS), write(tmp_path / "bench.jsonl", BENCH)
    program.FLAGS.parse(["describe", f"--data={train}", f"--against={bench}"])
    program.main([])
    text = capsys.readouterr().out
    report = rmjax.find_duplicates(train, bench)
    assert str(report) in text
    for options, expected in (
        ({"exclude": (bench,)}, re.search(r"data\.exclude would leave out (\d+)", text)[1]),
        ({"duplicates": "drop"}, re.search(r"drop would leave out (\d+)", text)[1]),
        ({"duplicates": "drop_near"}, re.search(r"drop_near (\d+)", text)[1]),
    ):
        given = ReadOptions(**options)
        comparisons, read = read_comparisons(train, given)
        assert len(RECORDS) - len(Curation(train, given).choose(comparisons, read)) == int(expected)


def test_the_program_names_its_own_flags(tmp_path):
    train, bench = write(tmp_path / "train.jsonl", RECORDS), write(tmp_path / "bench.jsonl", [{"text": "a b"}])
    program.FLAGS.parse(["describe", f"--data={train}", f"--against={bench}"])
    with pytest.raises(
        rmjax.InputError, match=r"^--against: no record of .* has a prompt .*\(--columns='old=prompt'\)"
    ):
        program.main([])


def test_the_program_shows_the_overlap_of_a_configuration(tmp_path, capsys):
    train, bench = write(tmp_path / "train.jsonl", RECORDS), write(tmp_path / "bench.jsonl", BENCH)
    (tmp_path / "config.py").write_text(
        "from rmjax.core.config import small\n\n\ndef get_config():\n    config = small()\n"
        f"    config.data.update(train=({train!r},), validation=({train!r},), exclude=({bench!r},))\n"
        "    return config\n"
    )
    program.FLAGS.parse(["describe", f"--config={tmp_path / 'config.py'}"])
    program.main([])
    text = capsys.readouterr().out
    assert f"3 skipped (prompt in {bench}), 1 skipped (similar prompt in {bench})" in text
    assert f"left out: 3 records skipped (first: {train}:1: its prompt is that of {bench}:1)" in text
    assert f"overlap with {bench} (2 comparisons, 2 prompts): 0 comparisons with the same conversations, 3 with" in text
    assert text.count("overlap with") == 1  # not of the validation data
    assert "training would stop" not in text
