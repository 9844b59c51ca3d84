"""The report of reading: shares, labels against texts, merging, JSON."""

import copy
import json

import pytest

from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.report import FieldValues, ReadReport
from rmjax.data.records.sources import memory_source


def report_of(values, kind="text", name="note", required=False):
    report = ReadReport(format="pairs", records=len(values), used={"prompt": "prompt", "chosen": "chosen"})
    for value in values:
        if value:
            report.add_unread(name, kind, value, required=required)
    return report


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([f"Note {i} of it." for i in range(8)], "`note` (text, 100 %)"),
        (["A note of it.", "", "", "Another note."], "`note` (text, 50 %)"),
        (["One note alone."], "`note` (text, 100 %)"),
        (["The same note of all."] * 9, ""),  # does not differ from record to record
        (["Open question answering", "Closed question answering"] * 100, ""),  # few short values: labels
        ([f"Topic number {i} of the list" for i in range(3)] * 4, "`note` (text, 100 %)"),
        ([f"A long text that is repeated, as a prompt of several pairs is: {i}" for i in range(3)] * 50,
         "`note` (text, 100 %)"),
        ([f"Value {i}" for i in range(1000)] * 2, "`note` (text, 100 %)"),  # more values than are counted
        (["A first note."] + [""] * 999, "`note` (text, under 1 %)"),
    ],
)  # fmt: skip
def test_text_that_differs_from_record_to_record_is_shown_with_its_share(values, shown):
    line = report_of(values).fields_line()
    assert line == "; ".join(
        filter(None, ("fields: prompt, chosen; without a prompt: 0", shown and f"not read: {shown}"))
    )


def test_conversations_and_required_fields_are_shown_even_if_they_are_the_same():
    same = [[{"role": "user", "content": "Hi"}]] * 9
    assert "not read: `note` (conversation, 100 %)" in report_of(same, "conversation").fields_line()
    assert (
        "not read: `input` (text, 100 %)" in report_of(["Summarize it."] * 9, name="input", required=True).fields_line()
    )


def test_the_line_is_short():
    report = ReadReport(records=1, used={"chosen": "chosen"})
    for i in range(9):
        report.add_unread(f"f{i}", "text", f"Text {i} is here.", required=False)
    assert report.fields_line().endswith("`f5` (text, 100 %), 3 more")
    assert ReadReport(records=5).fields_line() == ""


def test_the_share_without_a_prompt_is_of_the_records():
    report = ReadReport(records=4000, no_prompt=1234, used={"q": "prompt"})
    assert report.fields_line() == "fields: q -> prompt; without a prompt: 1,234 (31 %)"


def test_merged_reports_equal_the_report_of_all_records():
    values = [f"Value {i % 90}" + " and more of it" * (i % 7) for i in range(200)]
    whole, first, second = report_of(values), report_of(values[:70]), report_of(values[70:])
    for report, where in ((whole, "a:1"), (first, "a:1"), (second, "a:2")):
        report.skip(where, "reason", "kind")
        report.no_prompt = 3
    whole.skipped["kind"], whole.no_prompt = 2, 6
    merged = copy.deepcopy(first)
    merged.merge(second)
    assert merged == whole
    assert merged.first_skipped == {"kind": "a:1: reason"}
    assert first.records == 70
    first.merge(ReadReport(format="text", used={"prompt": "other", "text": "text"}))
    assert (first.format, first.used["prompt"], first.used["text"]) == ("pairs, text", "prompt", "text")


def test_memory_is_bounded_and_reports_are_json():
    report = report_of([f"Value number {i}" for i in range(5000)])
    text = json.dumps(vars(report), default=vars)
    assert len(text) < 2000
    read = ReadReport(**json.loads(text))
    assert isinstance(read.unread["note"], FieldValues)
    assert read == report
    read.merge(report)
    assert read.unread["note"].count == 10000


def test_fields_to_rename_that_no_record_has_are_named():
    records = [{"question": "Is it?", "chosen": " Yes.", "rejected": " No."}] * 2
    report = read_comparisons(memory_source(records), ReadOptions(columns=("question=prompt", "qestion=prompt")))[1]
    assert report.fields_line().endswith("without a prompt: 0; no record has `qestion` (data.columns)")
    report.merge(report)
    assert report.missing == ["qestion"]
