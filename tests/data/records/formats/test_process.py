"""Step labels: soft ones, ProcessBench and PRMBench, on invented records of the published layouts."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rmjax.core.errors import InputError
from rmjax.data.records.formats import parse_sources
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.sources import memory_source

STEPS = ["Add two.", "Add three.", "So five."]
TEXT = "p\nAdd two.\nAdd three.\nSo five."
ENDS = (10, 21, 30)
PROCESSBENCH = {
    "id": "gsm8k-0", "generator": "m", "problem": "p", "steps": STEPS, "final_answer_correct": False, "label": 1,
}  # fmt: skip
PRMBENCH = {
    "original_question": "Which number is the sum?", "modified_question": "p", "original_process": ["Add.", "So five."],
    "modified_process": STEPS, "modified_steps": [2], "error_steps": [2, 3], "reason": "Step two is not needed.",
    "idx": "redundency_0", "question": "Which number is the sum?", "classification": "redundency",
}  # fmt: skip


def write(path, records):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def labels(records, **options):
    found, _ = read_comparisons(memory_source(records), ReadOptions(**options))
    return [comparison.labels[:, 0].tolist() for comparison in found]


def trl(*values):
    return {"prompt": "p", "completions": STEPS[: len(values)], "labels": list(values)}


def test_labels_between_zero_and_one_are_probabilities():
    assert labels([trl(0.25, 1, 0.0), trl(True, 0.75)], step_labels="binary") == [[0.25, 1, 0], [1, 0.75]]
    assert labels([trl(0.25, 1, 0.0), trl(True, 0.75)]) == [[0.25, 1, 0], [1, 0.75]]
    np.testing.assert_array_equal(labels([trl(0.5, None, -100)]), [[0.5, np.nan, np.nan]])


@pytest.mark.parametrize("records", [[trl(1, -1), trl(1, 0.25)], [trl(0.25), trl(1), trl(-1)], [trl(0.5, -1)]])
@pytest.mark.parametrize("on_bad_record", ["error", "skip"])
def test_a_soft_label_beside_a_negative_one_is_an_error_of_the_source(records, on_bad_record):
    soft = next(i for i, record in enumerate(records, 1) if {0.25, 0.5} & set(record["labels"]))
    hard = next(i for i, record in enumerate(records, 1) if -1 in record["labels"])
    expected = (
        f"records:{soft}: the step labels hold a number between 0 and 1, and those of records:{hard} hold -1; expected "
        "one scale in all of a source"
    )
    with pytest.raises(InputError, match=expected):
        labels(records, on_bad_record=on_bad_record)


def test_all_files_of_a_glob_are_one_source(tmp_path):
    write(tmp_path / "a.jsonl", [trl(0.25)])
    write(tmp_path / "b.jsonl", [trl(-1)])
    with pytest.raises(InputError, match=r"a\.jsonl:1: the step labels hold a number between 0 and 1, and those of .*"):
        read_comparisons(str(tmp_path / "*.jsonl"), ReadOptions())
    sources = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    apart, _ = read_comparisons(sources, ReadOptions())
    assert [comparison.labels.tolist() for comparison in apart] == [[[0.25]], [[0]]]


@pytest.mark.parametrize(
    ("record", "options", "reason"),
    [
        (trl(1.5), {}, r"labels\[0\] is 1.5; expected true, false, 0 to 1, -1, or -100"),
        (trl(-0.5), {}, r"labels\[0\] is -0.5; expected true, false, 0 to 1, -1, or -100"),
        (trl(0.5), {"step_labels": "ternary"}, "labels holds 0.5; with data.step_labels = ternary expected -1, 0"),
        (trl(0.5, -1), {"step_labels": "binary"}, "labels holds -1; with data.step_labels = binary expected 0 to 1"),
    ],
)
def test_labels_of_no_scale_are_named(record, options, reason):
    with pytest.raises(InputError, match=f"records:1: {reason}"):
        labels([record], **options)


@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "in.parquet"])
def test_processbench_is_right_up_to_the_first_wrong_step(tmp_path, name):
    records = [PROCESSBENCH | {"label": label} for label in (1, -1, 0, 2)]
    found, report = read_comparisons(write(tmp_path / name, records), ReadOptions())
    assert report.format == "processbench"
    assert {comparison.conversations for comparison in found} == {(TEXT,)}
    assert {comparison.steps for comparison in found} == {ENDS}
    nan = np.nan
    expected = [[1, 0, nan], [1, 1, 1], [0, nan, nan], [1, 1, 0]]
    np.testing.assert_array_equal([comparison.labels[:, 0] for comparison in found], expected)


@pytest.mark.parametrize("name", ["in.jsonl", "in.json", "in.parquet"])
def test_prmbench_counts_its_wrong_steps_from_one(tmp_path, name):
    records = [PRMBENCH, PRMBENCH | {"error_steps": [1]}, PRMBENCH | {"error_steps": []}]
    found, report = read_comparisons(write(tmp_path / name, records), ReadOptions())
    assert report.format == "prmbench"
    assert {(comparison.conversations, comparison.steps) for comparison in found} == {((TEXT,), ENDS)}
    assert [comparison.labels[:, 0].tolist() for comparison in found] == [[1, 0, 0], [0, 1, 1], [1, 1, 1]]
    assert {comparison.subset for comparison in found} == {"redundency"}


def test_labels_of_benchmarks_keep_their_scale():
    assert labels([PRMBENCH], step_labels="ternary") == [[1, 0, 0]]
    assert labels([PROCESSBENCH | {"label": 2}], step_labels="ternary") == [[1, 1, 0]]


@pytest.mark.parametrize(
    ("record", "format", "reason"),
    [
        (PROCESSBENCH | {"label": 3}, "processbench", "label is 3; expected -1 (all steps are right), or the index of"),
        (PROCESSBENCH | {"label": -2}, "processbench", "label is -2; expected -1 (all steps are right)"),
        (PROCESSBENCH | {"label": 0.5}, "processbench", "label is 0.5; expected -1 (all steps are right)"),
        (PROCESSBENCH | {"label": None}, "processbench", "label is None; expected a finite number"),
        (PROCESSBENCH | {"steps": None}, "processbench", "no 'steps'; expected a record such as {\"problem\""),
        (PROCESSBENCH | {"steps": ["a", ""]}, "processbench", "steps[1] is ''; expected a string that is not empty"),
        (PROCESSBENCH | {"problem": None}, "processbench", "problem is None; expected a string that is not empty"),
        (PRMBENCH | {"error_steps": [0]}, "prmbench", "error_steps[0] is 0; modified_process has the steps 1 to 3"),
        (PRMBENCH | {"error_steps": [1, 4]}, "prmbench", "error_steps[1] is 4; modified_process has the steps 1 to 3"),
        (PRMBENCH | {"error_steps": None}, "prmbench", "error_steps is None; expected a list of step numbers, from 1"),
        (PRMBENCH | {"modified_process": None}, "prmbench", "no 'modified_process'; expected a record such as"),
    ],
)
def test_malformed_records_are_named(record, format, reason):
    (bad,) = parse_sources(memory_source([record]), ReadOptions(format=format))
    assert bad.reason.startswith(reason)


@pytest.mark.parametrize(("record", "label"), [(PROCESSBENCH, "label"), (PRMBENCH, "error_steps"), (trl(1), "labels")])
def test_step_labels_are_not_read_for_scoring(record, label):
    for given in (record | {label: "?"}, {key: value for key, value in record.items() if key != label}):
        (found,) = parse_sources(memory_source([given]), ReadOptions(labeled=False))
        assert (found.labels, len(found.steps)) == (None, 3 if label != "labels" else 1)
