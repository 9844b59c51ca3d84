"""Scoring a file in two processes."""

import json
import re

import pytest

import rmjax
from rmjax.evaluation.score_file import score_file
from tests.evaluation.test_pipeline import PAIR, make_pipeline, write
from tests.pair import Pair, own_lines


def test_two_processes_write_and_continue_what_one_process_writes(tmp_path):
    pipeline = make_pipeline(tmp_path / "model")
    records = [{"text": "x" * (1 + 7 * n % 90)} for n in range(300)] + [{"other": 1}, PAIR, {"text": "y" * 200}]
    source, output = write(tmp_path / "in.jsonl", records), tmp_path / "out.jsonl"
    assert score_file(pipeline, source, tmp_path / "alone.jsonl") == (303, 3)
    read = lambda path: [json.loads(line) for line in path.read_text().splitlines()]
    command = ["rmjax.score", f"--model={tmp_path / 'model'}", f"--input={source}", f"--output={output}"]
    for kept, options in ((0, []), (280, ["--mesh=tensor=2,fsdp=2"])):  # of two devices in each process
        lines = output.read_text().splitlines(keepends=True) if kept else []
        output.write_text("".join(lines[:kept]) + '{"torn'[: kept // 40])
        with Pair([*command, *options], tmp_path / f"pair{kept}") as pair:
            pair.wait()
            assert [process.returncode for process in pair.processes] == [1, 1]  # three records have no rewards
            first, second = pair.outputs()
        assert "300 of 303 records scored" in first
        assert ("continuing after 256 existing lines" in first) == bool(kept)  # of 280, the lines of whole chunks
        assert own_lines(second) == []
        for found, expected in zip(read(output), read(tmp_path / "alone.jsonl"), strict=True):
            assert found.pop("rewards", None) == pytest.approx(expected.pop("rewards", None), abs=1e-5)
            assert found == expected


def test_two_processes_evaluate_as_one(model, tmp_path):
    pairs = [{"prompt": "ab", "chosen": "c" * (1 + n % 7), "rejected": "d" * (1 + n % 5)} for n in range(40)]
    data, output = write(tmp_path / "data.jsonl", pairs), tmp_path / "report"
    command = ["rmjax.evaluate", f"--model={model}", f"--data={data}", f"--output={output}"]
    with Pair(command, tmp_path / "pair") as pair:
        first, second = pair.finish()
    assert f"wrote {output}/" in first
    assert own_lines(second) == []
    found = json.loads((output / "metrics.json").read_text())
    assert found == pytest.approx(rmjax.load(model).evaluate(data).metrics, abs=1e-5)
    assert len((output / "predictions.jsonl").read_text().splitlines()) == 40


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pipeline") / "model"
    make_pipeline(directory)
    return directory


def test_an_error_in_one_process_ends_both(model, tmp_path):
    source, output = write(tmp_path / "in.jsonl", [{"text": "abc"}] * 5), tmp_path / "out.jsonl"
    command = ["rmjax.score", f"--model={model}", f"--input={source}", f"--output={output}"]
    write(output, [{"text": "of another input", "rewards": [0.0]}])
    with Pair(command, tmp_path / "first") as pair:
        pair.wait()
        assert [process.returncode for process in pair.processes] == [2, 2]
        assert "out.jsonl:1: scores a record of another input" in pair.text(0, "err")
        assert re.search(r"error: process 0 \(.*\): .*out.jsonl:1: scores a record of another", pair.text(1, "err"))
    output.unlink()
    with Pair(command, tmp_path / "second", [[], [f"--input={tmp_path / 'missing.jsonl'}"]]) as pair:
        pair.wait()
        assert [process.returncode for process in pair.processes] == [2, 2]
        assert re.search(r"error: process 1 \(.*\): .*missing.jsonl", pair.text(0, "err"))
        assert "missing.jsonl" in pair.text(1, "err")


def test_different_records_in_the_processes_are_an_error(model, tmp_path):
    sources = [write(tmp_path / f"in{i}.jsonl", [{"text": text}]) for i, text in enumerate(("abc", "abd"))]
    command = ["rmjax.score", f"--model={model}", f"--output={tmp_path / 'out.jsonl'}"]
    with Pair(command, tmp_path / "pair", [[f"--input={source}"] for source in sources]) as pair:
        pair.wait()
        assert [process.returncode for process in pair.processes] == [2, 2]
        assert all("score different records" in pair.text(number, "err") for number in (0, 1))
    assert (tmp_path / "out.jsonl").read_text() == ""
