import json

import pytest

from rmjax.data.description import describe, overlap
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer

RECORDS = [
    {"prompt": "p", "chosen": " good", "rejected": " bad", "margin": 2},
    {"prompt": "p", "chosen": " good", "rejected": " bad"},
    {"prompt": "p", "chosen": " a", "rejected": " long"},
    {"prompt": "p", "chosen": " x"},
]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return [str(path)]


def test_describe_reports_counts_lengths_duplicates_and_tokens(tmp_path):
    source = write(tmp_path / "in.jsonl", RECORDS)
    text = describe(source, Tokenizer.load(""), DatasetOptions(on_bad_record="skip"))
    for expected in (
        "3 comparisons of 4 records (pairs)",
        "1 skipped (no 'rejected')",
        "responses per comparison: 2: 3",
        "the better response is the longer one in 66.7%",
        "margins 0 to 2",
        "duplicates: 1",
        "shared (2): p¦ ",
        "response 0 (5): g¦o¦o¦d¦⟦<eos>⟧",
    ):
        assert expected in text, text


@pytest.mark.parametrize(
    ("format", "expected"),
    [("regression", "label order: 1,000 of 1,000"), ("process", "label correct: 5,000 of 6,000, 0 to 1")],
)
def test_describe_reports_label_ranges_of_the_built_in_data(format, expected):
    text = describe(["synthetic"], Tokenizer.load(""), DatasetOptions(format=format))
    assert f"1,000 comparisons of 1,000 records ({format})" in text
    assert expected in text


def test_overlap_counts_comparisons_and_conversations(tmp_path):
    one = write(tmp_path / "a.jsonl", RECORDS[:2])
    other = write(tmp_path / "b.jsonl", [RECORDS[0], {"prompt": "p", "chosen": " new", "rejected": " bad"}])
    assert "1 comparisons, 2 conversations" in overlap(one, other, DatasetOptions())
