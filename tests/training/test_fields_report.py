"""The report of every run tells the use of the records' fields."""

import json

from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.training import datasets


def test_each_source_has_a_line_about_its_fields_also_from_the_cache(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("RMJAX_CACHE", str(tmp_path / "cache"))
    records = [
        {"question": f"q{i}", "chosen": "a", "rejected": "b", "notes": f"It is about {i} or so."} for i in (1, 2)
    ]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    tiny.data.columns = ("question=prompt",)
    sources = {"train": [str(source)], "validation": [str(source)]}
    fields = "  fields: chosen, rejected, question -> prompt; without a prompt: 0; not read: `notes` (text, 100 %)"
    for _ in range(2):
        lines = []
        datasets.load(tiny, sources, Tokenizer.load(""), lines.append, False)
        assert [line for line in lines if "fields: " in line] == [fields] * 2
        assert lines[1] == fields


def test_the_built_in_data_has_no_such_line(tiny):
    lines = []
    sources = {"train": ["synthetic"], "validation": ["synthetic"]}
    datasets.load(tiny, sources, Tokenizer.load(""), lines.append, False)
    assert len(lines) == 2
