"""The format `score`: one number per response, conversation or text."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rmjax.data.records.formats import parse_sources
from rmjax.data.records.formats.single import SCORES
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.report import ReadReport
from rmjax.data.records.sources import memory_source

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def read(records, **options):
    found, report = read_comparisons(memory_source(records), ReadOptions(**options))
    return found, report.format


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    ("record", "conversation", "add_eos", "start"),
    [
        ({"prompt": "p", "response": " r"}, "p r", True, 1),
        ({"prompt": "p", "completion": " r"}, "p r", True, 1),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, CHAT, True, 0),
        ({"prompt": CHAT[:1], "response": "a"}, CHAT, True, 0),
        ({"messages": CHAT}, CHAT, True, 0),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, CHAT, True, 0),
        ({"text": "t"}, "t", False, 0),
    ],
)
def test_the_field_of_the_number_names_the_attribute(name, record, conversation, add_eos, start):
    found, format = read([record | {name: -0.5}, record | {name: 3}])
    assert format == "score"
    assert [comparison.attributes for comparison in found] == [(name,)] * 2
    np.testing.assert_array_equal([comparison.labels for comparison in found], [[[-0.5]], [[3]]])
    assert found[0].conversations == (conversation,)
    assert (found[0].add_eos, found[0].start, found[0].edges) == (add_eos, start, ())


def test_true_and_false_are_one_and_zero_as_in_trls_unpaired_preferences():
    found, format = read([{"prompt": "p", "completion": "c", "label": label} for label in (True, False)])
    assert format == "score"
    assert [comparison.labels.tolist() for comparison in found] == [[[1]], [[0]]]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_scores_in_parquet_and_csv(tmp_path, suffix):
    path = tmp_path / f"in.{suffix}"
    if suffix == "csv":
        path.write_text("prompt,response,rating\np, r,4.5\n")
    else:
        row = {"prompt": "p", "response": " r", "rating": 4.5, "messages": None}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    found, report = read_comparisons(str(path), ReadOptions())
    assert (report.format, found[0].attributes, found[0].labels.tolist()) == ("score", ("rating",), [[4.5]])


def test_a_missing_label_is_marked_by_the_same_number_as_elsewhere():
    found, _ = read([{"prompt": "p", "response": "r", "score": 7}], missing_label=8.0)
    assert found[0].labels.tolist() == [[7]]
    (bad,) = parse_sources(memory_source([{"text": "t", "score": 7}]), ReadOptions(missing_label=7.0))
    assert bad.reason.startswith("every label is missing")


@pytest.mark.parametrize(
    ("record", "format"),
    [
        ({"prompt": "p", "response": "r", "score": 1, "labels": {"x": 1}}, "regression"),
        ({"prompt": "p", "response": "r", "score": 1, "helpfulness": 1}, "regression"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "score": 1}, "pairs"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1, 2], "score": 1}, "kwise"),
        ({"text": "t", "label": [1, 2]}, "nemo_regression"),
        ({"prompt": "p", "response": "r", "score": "high"}, "regression"),
    ],
)
def test_other_labels_come_first(record, format):
    report = ReadReport()
    list(parse_sources(memory_source([record]), ReadOptions(labeled=False), report))
    assert report.format == format


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": 1}, "the record has the scores score and label; expected one number in score, reward, rating,"),
        ({"score": None}, "the record has no score; expected one number in score, reward, rating, label"),
        ({"score": "high"}, "score is 'high'; expected a finite number"),
        ({"score": float("inf")}, "score is inf; expected a finite number"),
        ({"response": None}, "response is None; expected a string or a list of messages"),
    ],
)
def test_malformed_scores_are_named(change, reason):
    record = json.loads(json.dumps({"prompt": "p", "response": "r", "score": 1})) | change
    (bad,) = parse_sources(memory_source([record]), ReadOptions(format="score"))
    assert bad.reason.startswith(reason)


def test_scores_are_not_read_for_scoring():
    records = [{"prompt": "p", "response": "", "score": 1}, {"messages": CHAT, "label": "?", "reward": 2}]
    found = list(parse_sources(memory_source(records), ReadOptions(format="score", labeled=False)))
    assert [comparison.conversations for comparison in found] == [("p",), (CHAT,)]
    assert [comparison.labels for comparison in found] == [None, None]
