"""Records in memory: the same comparisons, messages, tokens and cache as those of a file with the same records."""

import json

import datasets
import numpy as np
import pandas
import pytest

from rmjax.core.errors import InputError
from rmjax.data.description import describe, overlap
from rmjax.data.records.formats import parse_sources
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons, read_items
from rmjax.data.records.sources import ReadReport, find_sources, memory_source
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer

RECORDS = [
    {"prompt": "p", "chosen": "good", "rejected": "bad", "margin": 2.0, "subset": "a"},
    {"prompt": "q", "chosen": "x", "rejected": "y", "margin": None, "subset": "b"},
    {"prompt": "r", "chosen": "1", "rejected": "2", "margin": 0.5, "subset": "a"},
]
MESSAGES = [{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": f"A{i}"}]} for i in (1, 2)]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(source, **options):
    report = ReadReport()
    return [vars(item) for item in parse_sources(source, ReadOptions(**options), report)], report


def without_place(items):
    return repr([{key: value for key, value in item.items() if key != "where"} for item in items])


KINDS = {"list": list, "tuple": tuple, "Dataset": datasets.Dataset.from_list, "DataFrame": pandas.DataFrame}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("records", [RECORDS, MESSAGES], ids=["pairs", "messages"])
def test_comparisons_equal_those_of_a_file(tmp_path, kind, records):
    expected, expected_report = read(write(tmp_path / "a.jsonl", records))
    found, report = read(memory_source(KINDS[kind](records)))
    assert [item["where"] for item in found] == [f"records:{i}" for i in range(1, len(records) + 1)]
    assert without_place(found) == without_place(expected)
    assert report == expected_report


def test_values_become_those_of_a_json_line(tmp_path):
    labels = {"a": np.float32(0.5), "b": np.int64(2), "c": None}
    given = {
        "prompt": np.str_("p"),
        "response": "r",
        "labels": labels,
        "list": (1, np.array([1.5, 2])),
        "key": {1: True},
    }
    plain = {"prompt": "p", "response": "r", "labels": {"a": 0.5, "b": 2, "c": None}, "list": [1, [1.5, 2]]}
    (found,), _ = read(memory_source([given]))
    (expected,), _ = read(write(tmp_path / "a.jsonl", [plain | {"key": {1: True}}]))
    assert found["record"] == expected["record"]
    assert type(found["record"]["prompt"]) is str
    assert repr(found["labels"]) == repr(expected["labels"])


def test_missing_values_of_a_dataframe_are_null(tmp_path):
    records = [{"prompt": "p", "response": "r", "helpfulness": 1, "verbosity": None, "text": None, "list": [1.0, None]}]
    frame = pandas.DataFrame(records * 2).astype({"helpfulness": "Int64", "text": "string"})
    frame["verbosity"] = np.nan
    frame.loc[1, "helpfulness"] = pandas.NA
    frame.at[1, "verbosity"] = 3.0
    frame["list"] = [np.array([1.0, np.nan])] * 2
    found, _ = read(memory_source(frame))
    assert found[0]["record"] == records[0]
    np.testing.assert_array_equal([item["labels"][0] for item in found], [[1, np.nan], [np.nan, 3]])


BAD = [3, "text", {"chosen": "a"}, {"prompt": "p", "chosen": "a\ud800", "rejected": "b"}, RECORDS[0] | {"margin": "x"}]


@pytest.mark.parametrize("record", BAD, ids=repr)
def test_bad_records_have_the_messages_of_a_file(tmp_path, record):
    records = [*RECORDS[:2], record]
    file = write(tmp_path / "a.jsonl", records)
    messages = []
    for source in (file, memory_source(records)):
        with pytest.raises(InputError) as error:
            read_comparisons(source, ReadOptions())
        messages.append(str(error.value))
        skipped = read_comparisons(source, ReadOptions(on_bad_record="skip"))[1].skipped
        assert sum(skipped.values()) == 1
    assert messages[1].startswith("records:3: ")
    assert messages[0] == messages[1].replace("records:", f"{file}:")


def test_record_that_contains_itself_is_bad():
    record = dict(RECORDS[0])
    record["self"] = record
    items, _ = read_items(memory_source([RECORDS[1], record]), ReadOptions(on_bad_record="skip"))
    assert items[1].reason == "the record is nested too deeply"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ("a.jsonl", "mine: a str; expected a list of dictionaries, a datasets.Dataset or a pandas DataFrame"),
        ({"prompt": "p"}, "mine: a dict with the keys 'prompt'; expected a list of records"),
        (datasets.DatasetDict(train=datasets.Dataset.from_list(RECORDS)), "a DatasetDict with the keys 'train'"),
        ((record for record in RECORDS), "mine: a generator; expected a list of dictionaries"),
        (None, "mine: a NoneType; expected"),
        (pandas.DataFrame([[1, 2]], columns=["a", "a"]), "mine: the DataFrame has two columns 'a'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_refused(records, message):
    with pytest.raises(InputError, match=message):
        memory_source(records, location="mine")


@pytest.mark.parametrize("kind", KINDS)
def test_no_record_is_an_error(kind):
    with pytest.raises(InputError, match="records: holds no record"):
        read_comparisons(memory_source(KINDS[kind]([])), ReadOptions())


def test_columns_name_and_limit_apply():
    records = [{"question": "p", "good": "a", "bad": "b"}] * 3
    options = ReadOptions(columns=("question=prompt", "good=chosen", "bad=rejected"), limit=2)
    found, _ = read_comparisons(memory_source(records, "mine", "cell 3"), options)
    assert [(c.conversations, c.subset, c.where) for c in found] == [
        (("pa", "pb"), "mine", f"cell 3:{i}") for i in (1, 2)
    ]


def tokens(source):
    return load_dataset(source, Tokenizer.load(""), DatasetOptions(), split="train")


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_equal_those_of_a_file_and_are_cached_by_content(tmp_path, kind):
    expected, expected_report = tokens(write(tmp_path / "a.jsonl", RECORDS))
    dataset, report = tokens(memory_source(KINDS[kind](RECORDS)))
    assert dataset.fingerprint() == expected.fingerprint()
    assert dataset.where(2) == "records:3"
    assert not report.cached
    again, cached = tokens(memory_source(KINDS[kind]([dict(record) for record in RECORDS])))
    assert cached.cached
    assert isinstance(again.tokens, np.memmap)
    expected_report.source = "records"
    cached.cached = False
    assert vars(report) == vars(cached) == vars(expected_report)
    changed, report = tokens(memory_source(KINDS[kind]([*RECORDS[:2], RECORDS[2] | {"rejected": "3"}])))
    assert not report.cached
    assert changed.fingerprint() != expected.fingerprint()


def test_paths_and_sources_are_accepted_like_strings(tmp_path):
    file, source = write(tmp_path / "a.jsonl", RECORDS), memory_source(RECORDS)
    for given in (file, str(file), find_sources(file)[0], [file], source, [source]):
        assert len(read_items(given, ReadOptions())[0]) == 3
        assert len(tokens(given)[0]) == 3
        assert "duplicates: 0" in str(describe(given, Tokenizer.load(""), DatasetOptions()))
    assert find_sources([source, file])[0] is source
    assert "3 comparisons, 6 conversations" in overlap(file, source, DatasetOptions())
    assert len(read_items([source, file], ReadOptions())[0]) == 6
    with pytest.raises(InputError, match=r"data synthetic, records: 'synthetic' cannot be mixed"):
        read_items(["synthetic", source], ReadOptions())
