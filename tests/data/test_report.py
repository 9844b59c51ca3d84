"""The report on data: the HTML page of `rmjax.describe`."""

import json
import re

import pytest

import rmjax
from rmjax.core.config import fine_tuning
from rmjax.core.errors import InputError
from rmjax.data.description import describe, describe_splits
from rmjax.data.report import Description
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer

PAIRS = [
    {"prompt": f"question {i}?", "chosen": " good" + "!" * i, "rejected": " bad", "margin": float(i)} for i in range(5)
]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return [str(path)]


def make(sources, against=(), **options):
    return Description.of(describe(sources, Tokenizer.load(""), DatasetOptions(**options), against))


def table(page, caption):
    """Returns the rows of a table of the page, as texts of their cells."""
    found = re.search(rf"<caption>{re.escape(caption)}[^<]*</caption>(.*?)</table>", page, re.DOTALL)[1]
    return [re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", found)]


def test_the_page_has_counts_histograms_findings_and_examples(tmp_path):
    special = {"prompt": "is <b> bold?", "chosen": " yes<eos>", "rejected": " no"}
    source = write(
        tmp_path / "in.jsonl", [*PAIRS, special, {"prompt": "p", "chosen": "x"}, PAIRS[4] | {"chosen": "x" * 50}]
    )
    other = write(tmp_path / "eval.jsonl", [{"prompt": "question 3?"}])
    found = make(source, other, max_length=30)
    found.save(tmp_path / "new" / "page.html")
    page = (tmp_path / "new" / "page.html").read_text()

    row = dict(zip(*table(page, "Comparisons that are kept"), strict=True))
    assert (row["records"], row["kept"], row["skipped"], row["too long"]) == ("8", "6", "1", "1")
    assert len(table(page, "Why records are left out")) == 3
    lengths = {name: cells for name, *cells in table(page, "Percentiles of the lengths")}
    # "question 4? good!!!!" and EOS; "is <b> bold? ", the space being common to both responses; "good!!!!" and EOS.
    assert [lengths[name][-1] for name in ("conversation", "prompt", "response")] == ["21", "13", "9"]
    assert lengths["conversation"][0] == "12"
    assert [f"part0-{name}" in page for name in ("conversation-length-max-length", "margins-", "responses-")] == [
        True,
        True,
        False,  # all have two
    ]
    assert "1 string with special tokens" in page
    assert table(page, "Comparisons that are in evaluation sets")[1][3] == "1"
    assert "is &lt;b&gt; bold?" in page
    assert "response 0 is better than response 1, margin 4" in page
    assert "g¦o¦o¦d¦⟦&lt;eos&gt;⟧" in page
    assert not re.search(r'(src|href)="(?!#)|<link|@import|url\((?!#)', page)
    assert found._repr_html_().count("<svg") == page.count("<svg") == 4
    found.save(tmp_path / "new" / "page.html")  # replaces it
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]


def test_labels_of_any_name_have_histograms_and_prompts_of_single_responses_are_counted(tmp_path):
    labels = [{"$a$ $": i % 3, "b": i / 7, "none": None} for i in range(50)]
    records = [{"prompt": "why?", "response": "r" * (i + 1), "labels": label} for i, label in enumerate(labels)]
    page = make(write(tmp_path / "in.jsonl", records))._repr_html_()
    rows = table(page, "Attributes")
    assert rows[1][:5] == ["$a$ $", "50", "50", "0.0000", "2.0000"]
    assert rows[3] == ["none", "0", "50", "", "", "", ""]
    assert "Labels of $a$ $." in page
    assert "Labels of none." not in page
    lengths = {name: cells for name, *cells in table(page, "Percentiles of the lengths")}
    assert lengths["conversation"][-1] == "55"
    assert (lengths["prompt"][0], lengths["prompt"][-1], lengths["response"][-1]) == ("50", "4", "51")
    assert "$a$ $ 0, b 0, none nan" in page


def test_splits_of_a_configuration_have_sections_of_their_own(tmp_path):
    config = fine_tuning()
    config.data.train, config.data.validation = (tuple(write(tmp_path / f"{i}.jsonl", PAIRS[i:])) for i in range(2))
    found = describe_splits(config.data, Tokenizer.load(""))
    page = Description.of(found, ["training would stop: <why>"])._repr_html_()
    assert re.findall(r"<h2[^>]*>(\w+: [^<]*)</h2>", page)[::5] == ["Train: Sources", "Validation: Sources"]
    assert "overlap of training and validation data: 4 comparisons" in page
    assert "training would stop: &lt;why&gt;" in page
    identifiers = re.findall(r'\bid="([^"]*)"', page)
    assert len(identifiers) == len(set(identifiers))


def test_data_of_which_nothing_is_kept_has_a_page(tmp_path):
    page = make(write(tmp_path / "in.jsonl", PAIRS), max_length=3)._repr_html_()
    assert table(page, "Comparisons that are kept")[1][2:4] == ["5", "0"]
    assert "Examples" not in page


def test_the_program_writes_the_page_and_names_wrong_outputs(tmp_path, capsys, run_main):
    data = f"--data={write(tmp_path / 'in.jsonl', PAIRS)[0]}"
    for output, message in (("page", "ending .html"), ("in.jsonl", "ending .html"), ("in.jsonl/a.html", "is a file")):
        with pytest.raises(InputError, match=message):
            run_main("describe", data, f"--output={tmp_path / output}")
    run_main("describe", data, f"--output={tmp_path / 'page.html'}")
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path / 'page.html'}\n")
    assert "<title>Data: " in (tmp_path / "page.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "page.html"]


def test_the_description_in_python_is_shown_and_saved(tmp_path):
    found = rmjax.describe(PAIRS)
    assert found._repr_html_().startswith("<nav>")
    found.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
