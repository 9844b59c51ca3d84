"""Formats that a user defines in a Python file: the example of the documentation, errors, and the token cache."""

import json

import pytest

import rmjax
from rmjax.core.errors import InputError
from rmjax.data.records.formats import find_format, parse_sources
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.sources import memory_source
from rmjax.data.schema import Edge
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer
from tests.conftest import ROOT

EXAMPLE = ROOT / "docs" / "my_format.py"
TICKET = {
    "ticket": "My lamp is dark.",
    "drafts": [{"text": " Plug it in.", "votes": 1}, {"text": " Change the bulb.", "votes": 4}],
}
PAIR = {"q": "p", "good": " a", "bad": " b"}
AS_PAIR = 'def parse(record):\n    return {"prompt": record["q"], "chosen": record["good"], "rejected": record["bad"]'


@pytest.fixture
def format_file(tmp_path):
    def write(text):
        (tmp_path / "mine.py").write_text(text)
        return str(tmp_path / "mine.py")

    return write


def parse(format, *records, **options):
    return list(parse_sources(memory_source(list(records)), ReadOptions(format=format, **options)))


def test_the_example_of_the_documentation(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(TICKET) + "\n")
    found, report = read_comparisons(str(source), ReadOptions(format=str(EXAMPLE)))
    assert report.format == str(EXAMPLE)
    assert found[0].conversations == ("My lamp is dark. Plug it in.", "My lamp is dark. Change the bulb.")
    assert found[0].edges == (Edge(1, 0, margin=3.0, weight=1.0),)
    assert found[0].where == f"{source}:1"
    assert found[0].record == TICKET
    without_votes = TICKET | {"drafts": [{"text": " Plug it in."}]}
    (scored,) = parse(str(EXAMPLE), without_votes, labeled=False)
    assert (scored.conversations, scored.edges) == (("My lamp is dark. Plug it in.",), ())
    (bad,) = parse(str(EXAMPLE), TICKET | {"drafts": []})
    assert bad.reason == f"parse() of {EXAMPLE}, line 8: ValueError: the ticket has no draft"
    assert EXAMPLE.read_text() in (ROOT / "docs" / "howto" / "data_format.md").read_text()


def test_renamed_fields_weight_subset_and_tools_are_those_of_formats(format_file):
    extra = ', "weight": 3, "subset": "x", "tools": [{"name": "f"}]}\n'
    (found,) = parse(
        format_file(AS_PAIR + extra), PAIR | {"weight": 9}, strings="chat", columns=("good=bad", "bad=good")
    )
    assert found.edges == (Edge(0, 1, weight=3.0),)
    assert found.subset == "x"
    tools, question, answer = found.conversations[0]
    assert (tools["tools"], question["content"], answer["content"]) == ([{"name": "f"}], "p", " b")


COMPARISON = (
    "from rmjax.data.schema import Comparison, Edge\n\n\ndef parse(record):\n"
    "    texts = tuple(record['q'] + record[name] for name in record if name != 'q')\n"
    "    return Comparison(texts, True, {edges}, {labels}, '', {{}}, attributes={attributes})\n"
)


def test_a_comparison_may_be_returned(format_file):
    path = format_file(COMPARISON.format(edges="(Edge(0, 1), Edge(2, 1, margin=0.5))", labels=None, attributes=()))
    record = {"q": "p", "x": "a", "y": "b", "z": "c"}
    (found,) = parse(path, record)
    assert found.conversations == ("pa", "pb", "pc")
    assert found.edges == (Edge(0, 1, weight=0.5), Edge(2, 1, margin=0.5, weight=0.5))  # they sum to one
    assert (found.where, found.record) == ("records:1", record)
    (scored,) = parse(path, record, labeled=False)
    assert scored.edges == ()
    path = format_file(COMPARISON.format(edges="()", labels="[[1], [2], [None]]", attributes="('x',)"))
    (found,) = parse(path, record)
    assert found.labels[:2].tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("edges", "labels", "reason"),
    [
        ("(Edge(0, 3),)", None, "Edge(winner=0, loser=3, margin=0.0, weight=1.0, strength=1.0, target=1.0) is not"),
        ("(Edge(1, 1),)", None, "Edge(winner=1, loser=1, "),
        ("(Edge(0, 1, weight=0),)", None, "Edge(winner=0, loser=1, margin=0.0, weight=0, "),
        ("()", "[[1]]", "its labels have the shape (1, 1); expected (2, 0): readouts by attributes"),
        ("()", "'x'", "could not convert string to float"),
        ("3", None, "'int' object is not iterable"),
    ],
)
def test_an_invalid_comparison_is_named(format_file, edges, labels, reason):
    path = format_file(COMPARISON.format(edges=edges, labels=labels, attributes=()))
    (bad,) = parse(path, {"q": "p", "x": "a", "y": "b"})
    assert bad.reason.startswith(f"parse() of {path} returned an invalid Comparison: {reason}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n", "defines no function parse(record); see docs/data.md"),
        ("parse = 3\n", "defines no function parse(record); see docs/data.md"),
        ("x = 1\ndef parse(:\n", "line 2: SyntaxError: invalid syntax"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        (None, "no such file; expected a Python file that defines parse(record)"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, format_file, text, reason):
    path = str(tmp_path / "missing.py") if text is None else format_file(text)
    with pytest.raises(InputError) as error:
        parse(path, PAIR)
    assert str(error.value) == f"data.format = {path}: {reason}"
    with pytest.raises(InputError, match=r"^data.format = "):
        find_format(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('def parse(record):\n    return record["x"]\n', ", line 2: KeyError: x"),
        ("def parse(record):\n    return record.parse()\n", ", line 2: AttributeError: "),
        ("def parse():\n    pass\n", ", TypeError: parse() takes 0 positional arguments but 1 was given"),
        ("def parse(record):\n    return [record]\n", " returned list; expected a record (a dict) of a format, or"),
        ("def parse(record):\n    pass\n", " returned NoneType; expected a record"),
        ('def parse(record):\n    return {"x": 1}\n', " returned a record of no format: no format has the fields x;"),
    ],
)
def test_what_is_wrong_with_a_record_is_its_reason(format_file, text, reason):
    path = format_file(text)
    (bad,) = parse(path, PAIR)
    assert bad.reason.startswith(f"parse() of {path}{reason}")
    assert (bad.where, bad.record) == ("records:1", PAIR)
    with pytest.raises(InputError, match=r"records:1: parse\(\) of .*mine\.py"):
        read_comparisons(memory_source([PAIR]), ReadOptions(format=path))
    assert read_comparisons(memory_source([PAIR]), ReadOptions(format=path, on_bad_record="skip"))[0] == []


def test_values_that_are_no_json_become_json(format_file):
    path = format_file('import numpy as np\n\n\ndef parse(record):\n    return {"prompt": "p", "responses": ("a", "b"),'
                       ' "scores": np.arange(2)}\n')  # fmt: skip
    (found,) = parse(path, PAIR)
    assert [(edge.winner, edge.loser) for edge in found.edges] == [(1, 0)]


def test_tokens_are_cached_by_the_content_of_the_file(tmp_path, format_file):
    (tmp_path / "in.jsonl").write_text(json.dumps(PAIR) + "\n")
    path = format_file(AS_PAIR + "}\n")

    def load():
        dataset, report = load_dataset(
            str(tmp_path / "in.jsonl"), Tokenizer.load(""), DatasetOptions(format=path), split="train"
        )
        return report.cached, [Tokenizer.load("").base.decode(branch) for branch in dataset.tree(0).branches]

    assert load() == (False, ["a<eos>", "b<eos>"])
    assert load() == (True, ["a<eos>", "b<eos>"])
    format_file(
        AS_PAIR.replace('"good"', '"bad"', 1).replace('"rejected": record["bad"]', '"rejected": record["good"]') + "}\n"
    )
    assert load() == (False, ["b<eos>", "a<eos>"])


def test_the_configuration_takes_a_file_and_refuses_one_that_cannot_be_used(tmp_path, format_file):
    from rmjax.training.checks import check_config

    config = rmjax.configs.small()
    config.data.format = format_file(AS_PAIR + "}\n")
    check_config(config)
    config.data.format = format_file("x = 1\n")
    with pytest.raises(InputError, match=r"mine\.py: defines no function parse\(record\)"):
        check_config(config)
