"""Files of records: JSON arrays, encodings, and other files under the name of a data file."""

import codecs
import csv
import gzip
import json

import pytest

from rmjax.core.errors import InputError
from rmjax.data.records import files
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons

RECORDS = [
    {"prompt": "p", "chosen": 'a\n"\\é\U0001f600', "rejected": "b", "margin": 12.5, "id": 123456},
    {"prompt": "q", "chosen": "c", "rejected": "", "nested": [[1, -2e3, None], {"x": {}}], "flag": False},
    {"prompt": "r" * 50, "chosen": "d", "rejected": "e"},
]
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


def rows(path):
    return list(files.read_rows(str(path)))


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_an_array_is_read_record_by_record(tmp_path, monkeypatch, suffix, indent, ascii_only, chunk):
    monkeypatch.setattr(files, "_CHUNK", chunk)
    path = tmp_path / f"in{suffix}"
    content = ("\ufeff\n " + json.dumps(RECORDS, indent=indent, ensure_ascii=ascii_only) + "\n").encode()
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    assert rows(path) == list(enumerate(RECORDS, 1))


def test_places_in_an_array_are_numbers_of_records(tmp_path):
    path = tmp_path / "in.json"
    path.write_text(json.dumps([PAIR, PAIR | {"chosen": ""}, PAIR]))
    found, report = read_comparisons(str(path), ReadOptions(on_bad_record="skip"))
    assert [comparison.where for comparison in found] == [f"{path}:1", f"{path}:3"]
    assert report.first_skipped == {"chosen is empty": f"{path}:2: chosen is empty; a response needs text"}


def test_only_the_record_at_hand_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK", 100)
    path = tmp_path / "in.json"
    path.write_text(json.dumps([PAIR] * 1000))
    pieces, read = files._pieces, []

    def counted(location, size=0):
        for piece in pieces(location, size):
            read.append(piece)
            yield piece

    monkeypatch.setattr(files, "_pieces", counted)
    found = files.read_rows(str(path))
    assert next(found) == (1, PAIR)
    assert len(read) < 5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"a": 1},\n{"a": 2}', r"in line 2, after 2 whole records \(it is not closed\)"),
        ('[{"a": 1},\n{"a": "x', r"in line 2, after 1 whole record \(Unterminated string"),
        ('[{"a": 1}\n{"a": 2}]', r"in line 2, after 1 whole record \(found '\{', expected a comma or \]\)"),
        ('[{"a": 1},\n]', r"in line 2, after 1 whole record \(Expecting value\)"),
        ("[{'a': 1}]", r"in line 1, after 0 whole records \(Expecting property name"),
        (
            '[{"a": 1}]\n[{"a": 2}]',
            r"in line 2, after 1 whole record \(text follows it; a line of JSONL has to be an object\)",
        ),
        ('[{"a": ' + "9" * 5000 + "}]", r"in line 1, after 0 whole records \(Exceeds the limit"),
        ("[" * 200_000, r"in line 1, after 0 whole records \("),
    ],
)
@pytest.mark.parametrize("chunk", [5, 1 << 20])
def test_a_damaged_array_is_one_error(tmp_path, monkeypatch, text, reason, chunk):
    monkeypatch.setattr(files, "_CHUNK", chunk if len(text) < 1000 else 1 << 20)
    path = tmp_path / "in.json"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"^{path}: the JSON array is damaged {reason}"):
        rows(path)
    with pytest.raises(InputError, match="the JSON array is damaged"):  # whatever is done with bad records
        read_comparisons(str(path), ReadOptions(on_bad_record="skip"))


def test_an_error_early_in_a_large_array_is_found_without_reading_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK", 100)
    path = tmp_path / "in.json"
    path.write_text('[{"a": nul' + " " * 10_000 + "}]")
    taken = []
    monkeypatch.setattr(files._Array, "_fill", _counting(files._Array._fill, taken))
    with pytest.raises(InputError, match="Expecting value"):
        rows(path)
    assert len(taken) < 5


def _counting(function, taken):
    def counted(*args):
        taken.append(args)
        return function(*args)

    return counted


def test_entries_of_an_array_that_are_not_objects_are_bad_records(tmp_path):
    path = tmp_path / "in.json"
    path.write_text(r'[{"text": "a"}, 3, "x", {"text": "\ud800"}]')
    kinds = [str(record) for _, record in rows(path)]
    assert kinds[1:] == [
        "expected a JSON object, found int",
        "expected a JSON object, found str",
        "half a surrogate pair (\\ud800 to \\udfff alone), which is not valid text",
    ]


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_a_key_that_is_twice_in_an_object_is_refused_with_its_line(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(files, "_CHUNK", chunk)
    twice = '{"prompt": "p", "chosen": "a", "rejected": "b", "chosen": "c"}'
    nested = '{"prompt": [{"role": "user", "content": "q", "role": "user"}], "chosen": "a", "rejected": "b"}'
    lines = [json.dumps(PAIR), twice, nested, json.dumps(PAIR)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    (tmp_path / "in.json").write_text(f"[{', '.join(lines)}]")
    for name in ("in.jsonl", "in.json"):
        found = rows(tmp_path / name)
        assert [str(record) for _, record in found[1:3]] == [
            "the key 'chosen' is twice in one object; remove one of them",
            "the key 'role' is twice in one object; remove one of them",
        ]
        assert [found[0], found[3]] == [(1, PAIR), (4, PAIR)]
        with pytest.raises(InputError, match=rf"{name}:2: the key 'chosen' is twice"):
            read_comparisons(str(tmp_path / name), ReadOptions())


def test_a_key_that_is_twice_in_a_cell_is_refused_where_the_cell_is_parsed(tmp_path):
    turns, text = '[{"role": "user", "content": "q", "content": "r"}]', '{"k": 1, "k": 2}'
    with open(tmp_path / "in.csv", "w", newline="") as file:
        csv.writer(file).writerows([["prompt", "chosen"], [turns, "a"], ["q", text]])
    (_, bad), good = rows(tmp_path / "in.csv")
    assert str(bad) == "prompt: the key 'content' is twice in one object; remove one of them"
    assert good == (3, {"prompt": "q", "chosen": text})


def test_an_empty_array_has_no_record(tmp_path):
    (tmp_path / "in.json").write_text("[ ]")
    with pytest.raises(InputError, match=r"in\.json: holds no record"):
        read_comparisons(str(tmp_path / "in.json"), ReadOptions())


def test_an_object_over_several_lines_is_one_error(tmp_path):
    path = tmp_path / "in.json"
    path.write_text(json.dumps({"data": RECORDS}, indent=2))
    with pytest.raises(
        InputError, match=rf"^{path}: line 1 holds no whole record; expected one array of records, or one"
    ):
        rows(path)
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + "{}x\n")  # lines, one of them broken
    assert [number for number, _ in rows(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".jsonl.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_encodings_are_named_with_and_without_a_byte_order_mark(tmp_path, suffix, encoding):
    path = tmp_path / f"in{suffix}"
    content = (json.dumps([PAIR]) if suffix == ".json" else "prompt,chosen,rejected\np,a,b\n").encode(encoding)
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    with pytest.raises(InputError, match=rf"{path}: the file is {encoding[:6].upper()}; convert it to UTF-8"):
        rows(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".jsonl.gz"])
@pytest.mark.parametrize("count", [1, 2, 5000])
def test_zero_bytes_are_not_taken_for_an_encoding(tmp_path, suffix, count):
    path = tmp_path / f"in{suffix}"
    path.write_bytes(gzip.compress(bytes(count)) if suffix.endswith(".gz") else bytes(count))
    with pytest.raises(InputError, match=rf"{path}: the file begins with zero bytes; it is damaged, or not a text"):
        rows(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_byte_order_mark_of_utf8_is_no_part_of_the_data(tmp_path, suffix):
    path = tmp_path / f"in{suffix}"
    text = "prompt,chosen,rejected\np,a,b\n" if suffix == ".csv" else json.dumps([PAIR] if suffix == ".json" else PAIR)
    path.write_bytes(codecs.BOM_UTF8 + text.encode())
    assert [record for _, record in rows(path)] == [PAIR]


def test_a_byte_in_an_array_that_is_not_utf8_is_named_with_its_line(tmp_path):
    path = tmp_path / "in.json"
    path.write_bytes(json.dumps([PAIR, PAIR | {"chosen": "ä"}], indent=1, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(InputError, match=rf"{path}:9: not UTF-8 \(byte 0xe4 at position \d+ of the line\)"):
        rows(path)


def test_cells_of_csv_may_hold_messages(tmp_path):
    turns = [{"from": "human", "value": "q"}]
    with open(tmp_path / "in.csv", "w", newline="") as file:
        csv.writer(file).writerows([["prompt", "chosen"], [json.dumps(turns), json.dumps([{"k": 1}])]])
    assert rows(tmp_path / "in.csv") == [(2, {"prompt": turns, "chosen": '[{"k": 1}]'})]


@pytest.mark.parametrize("text", ["[{'role': 'user', 'content': \"It's\"}]", "[{'from': 'human', 'value': 'q'}\n {'"])
def test_messages_that_pandas_wrote_to_csv_are_refused(tmp_path, text):
    with open(tmp_path / "in.csv", "w", newline="") as file:
        csv.writer(file).writerows([["prompt", "chosen"], ["q", text], ["q", "['role']"]])
    (_, bad), good = rows(tmp_path / "in.csv")
    assert str(bad).startswith("chosen holds messages as Python prints them; write JSON text")
    assert good == (3 + text.count("\n"), {"prompt": "q", "chosen": "['role']"})


@pytest.mark.parametrize("chosen", ["['It\\'s']", '["a"]', "['a'\n \"b's\"]", " [ 'a', 'b' ] "])
@pytest.mark.parametrize("rejected", ["['b', 'c']", '["b", "c"]'])
def test_lists_of_responses_in_cells_are_refused(tmp_path, chosen, rejected):
    lines = [["prompt", "chosen", "rejected"], ["q", chosen, rejected], ["q", chosen, "b"], ["q", "a", rejected]]
    with open(tmp_path / "in.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    (_, bad), *good = rows(tmp_path / "in.csv")
    assert str(bad).startswith("chosen and rejected hold lists of strings, which a CSV cell cannot tell from text; ")
    assert [row for _, row in good] == [
        {"prompt": "q", "chosen": chosen, "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": rejected},
    ]


def test_columns_of_the_same_name_are_refused(tmp_path):
    (tmp_path / "in.csv").write_text("prompt,chosen,chosen,,\na,b,c,,\n")
    with pytest.raises(InputError, match=r"in\.csv: two columns have the name 'chosen'; rename one"):
        rows(tmp_path / "in.csv")


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".csv.gz"])
def test_a_file_that_was_decompressed_on_the_way_is_named(tmp_path, suffix):
    (tmp_path / f"in{suffix}").write_text('{"a": 1}\n')
    with pytest.raises(InputError, match=r"not compressed by gzip; remove \.gz from its name"):
        rows(tmp_path / f"in{suffix}")


def test_damaged_gzip_is_named(tmp_path):
    path = tmp_path / "in.json.gz"
    path.write_bytes(gzip.compress(json.dumps(RECORDS * 100).encode())[:-20])
    with pytest.raises(InputError, match=rf"{path}: truncated or damaged gzip"):
        rows(path)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json.gz", ".csv.gz"])
def test_a_compressed_page_is_named(tmp_path, suffix):
    (tmp_path / f"in{suffix}").write_bytes(gzip.compress(b"\n<!DOCTYPE html><html></html>"))
    with pytest.raises(InputError, match=r"this is an HTML page; download the file itself"):
        rows(tmp_path / f"in{suffix}")
