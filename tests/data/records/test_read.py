import dataclasses
import json

import pytest

from rmjax.core.config import default
from rmjax.core.errors import InputError
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons, read_items
from rmjax.data.records.sources import BadRecord
from rmjax.data.tokens.tokenize import DatasetOptions

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}
TIED = {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 1]}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.mark.parametrize("options", [ReadOptions, DatasetOptions])
def test_defaults_are_those_of_the_configuration(options):
    data = default().data
    values = {field.name: getattr(options(), field.name) for field in dataclasses.fields(options)}
    assert set(values) - set(data.keys()) == {"limit", "labeled"}
    assert {name: values[name] for name in values if name in data} == {
        name: data[name] for name in data if name in values
    }


def test_bad_records_are_errors_or_skipped_and_counted_or_kept(tmp_path):
    source = write(tmp_path / "in.jsonl", [PAIR, {"chosen": "a"}, PAIR, PAIR])
    with pytest.raises(InputError, match=r"in\.jsonl:2: no 'rejected'.*on_bad_record"):
        read_comparisons(source, ReadOptions())
    skip = ReadOptions(on_bad_record="skip", limit=2)
    comparisons, report = read_comparisons(source, skip)
    assert [c.where for c in comparisons] == [f"{source}:1", f"{source}:3"]
    assert (report.format, report.records, dict(report.skipped)) == ("pairs", 4, {"no 'rejected'": 1})
    items, _ = read_items(source, skip)
    assert [type(item) for item in items] == [type(comparisons[0]), BadRecord]


def test_tied_comparisons_are_left_out_without_an_error(tmp_path):
    source = write(tmp_path / "in.jsonl", [TIED, TIED | {"ranks": [2, 1]}])
    comparisons, report = read_comparisons(source, ReadOptions())
    assert len(comparisons) == sum(report.skipped.values()) == 1


def test_built_in_data_has_split_size_limit_and_format():
    options = ReadOptions(format="regression", group_prompts=True, limit=3)
    comparisons, report = read_comparisons("synthetic", options, split="validation", synthetic_size=5)
    assert [c.where for c in comparisons] == [f"synthetic-validation:{i}" for i in (1, 2, 3)]
    assert (report.format, report.records) == ("regression", 5)
    assert read_comparisons(["synthetic"], ReadOptions(), synthetic_size=1)[1].format == "pairs"
    options = ReadOptions(synthetic_format="process")
    assert read_comparisons(["synthetic"], options, synthetic_size=1)[1].format == "process"
    options = ReadOptions(format="kwise", synthetic_format="process")
    assert read_comparisons(["synthetic"], options, synthetic_size=1)[1].format == "kwise"
    with pytest.raises(InputError, match="'synthetic' cannot be mixed with files"):
        read_comparisons(["synthetic", "in.jsonl"], ReadOptions())
