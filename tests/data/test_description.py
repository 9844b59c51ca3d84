import importlib
import json

import pytest

from rmjax.core.config import fine_tuning
from rmjax.core.errors import InputError
from rmjax.data.description import describe, overlap, render
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer
from tests.conftest import ROOT

program = importlib.import_module("rmjax.describe")  # `rmjax.describe` is the function of that name
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
    text = str(describe(source, Tokenizer.load(""), DatasetOptions()))
    for expected in (
        "3 comparisons of 4 records (pairs)",
        "1 skipped (no 'rejected')",
        "responses per comparison: 2: 3",
        "the better response is the longer one in 66.7%",
        "margins 0 to 2",
        "  left out: 1 record skipped (first: ",
        "in.jsonl:4: no 'rejected'; expected a record such as {",
        "duplicates: 1 comparison with",
        "shared (2): p¦ ",
        "response 0 (5): g¦o¦o¦d¦⟦<eos>⟧",
    ):
        assert expected in text, text


def test_describe_reports_the_use_of_fields_and_unread_content_of_refused_records_too(tmp_path):
    records = [record | {"context": f"It is about the number {i}."} for i, record in enumerate(RECORDS[:2])]
    source = write(tmp_path / "in.jsonl", [*records, RECORDS[2]])
    text = str(describe(source, Tokenizer.load(""), DatasetOptions()))
    assert (
        "\n  fields: prompt, chosen, rejected; without a prompt: 0; not read: `context` (text, 67 %)\n"
        "  left out: 2 records skipped (first: "
    ) in text
    assert "in.jsonl:1: 'context' is not read, and holds text beside the prompt; " in text


@pytest.mark.parametrize(
    ("format", "expected"),
    [("regression", "label order: 1,000 of 1,000"), ("process", "label correct: 5,000 of 6,000, 0 to 1")],
)
def test_describe_reports_label_ranges_of_the_built_in_data(format, expected):
    text = str(describe(["synthetic"], Tokenizer.load(""), DatasetOptions(format=format)))
    assert f"1,000 comparisons of 1,000 records ({format})" in text
    assert expected in text


def test_overlap_counts_comparisons_and_conversations(tmp_path):
    one = write(tmp_path / "a.jsonl", RECORDS[:2])
    other = write(tmp_path / "b.jsonl", [RECORDS[0], {"prompt": "p", "chosen": " new", "rejected": " bad"}])
    assert "1 comparison, 2 conversations" in overlap(one, other, DatasetOptions())


def describe_config(tmp_path, capsys, train, validation=None, **options):
    """Returns what `rmjax.describe --config` prints for a configuration of `fine_tuning` with these data options."""
    Tokenizer.load("").save(tmp_path / "tokenizer")
    values = {"train": tuple(train), "validation": tuple(validation or train)} | options
    (tmp_path / "config.py").write_text(
        "from rmjax.core.config import fine_tuning\n\n\ndef get_config():\n    config = fine_tuning()\n"
        f"    config.model.path = {str(tmp_path / 'tokenizer')!r}\n"
        f"    config.data.update({values!r})\n    return config\n"
    )
    program.FLAGS.parse(["describe", f"--config={tmp_path / 'config.py'}"])
    program.main([])
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def _flags_as_before():
    yield
    program.FLAGS.values.unparse_flags()


def test_a_configuration_is_described_as_it_is_trained(tmp_path, capsys):
    train = write(tmp_path / "train.jsonl", [*RECORDS[:3], {"prompt": "p" * 80, "chosen": "a", "rejected": "b"}])
    validation = write(tmp_path / "test.jsonl", [RECORDS[2], {"prompt": "p", "chosen": "y", "rejected": "z"}])
    text = describe_config(tmp_path, capsys, train, validation, max_length=90)
    for expected in (
        "tokenizer: ",
        "strings: chat; max_length: 90",
        "3 comparisons of 4 records (pairs); 1 dropped as longer than max_length = 90",
        "  left out: 1 comparison longer than max_length = 90 (first: ",
        "train.jsonl:4, 102 tokens)",
        "shared (21): <|im_start|>¦u¦s¦e¦r¦⏎¦p¦<|im_end|>",
        "2 comparisons of 2 records (pairs); nothing dropped",
        "test.jsonl:1, token by token",
        "overlap of training and validation data: 1 comparison, 2 conversations",
    ):
        assert expected in text, text
    assert "training would stop" not in text
    # The shown tokens are those of the dataset that training loads.
    config = fine_tuning()
    config.data.max_length = 90
    options = DatasetOptions.from_config(config.data, "train")
    dataset, report = load_dataset(train[0], Tokenizer.load(""), options, split="train")
    assert report.cached
    assert "\n".join(render(dataset.tree(0), Tokenizer.load(""))) in text


@pytest.mark.parametrize(
    ("records", "options", "message"),
    [
        (
            RECORDS,
            {},
            'in.jsonl:4: no \'rejected\'; expected a record such as {"prompt": "Hi", "chosen": "Hello", "rejected":',
        ),
        (RECORDS[:2], {"max_length": 20, "on_overlong": "error"}, "in.jsonl:1: 27 tokens, more than"),
        (
            RECORDS[:2],
            {"max_length": 20},
            "config.data.train: no usable comparison in 2 records: 2 comparisons longer than",
        ),
        ([{"prompt": "p", "response": "r", "labels": {"a": 1}}], {}, "no record has a preference"),
    ],
)
def test_the_error_of_training_is_described(tmp_path, capsys, records, options, message):
    text = describe_config(tmp_path, capsys, write(tmp_path / "in.jsonl", records), **options)
    assert any(line.startswith("training would stop: ") and message in line for line in text.splitlines()), text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config=configs/binary.py", "--strings=chat"],
            "--strings does not apply with --config; use --config.data.s",
        ),
        (["--config=configs/smollm2.py"], "config.data.train, config.data.validation, config.model.path: required"),
        (["--data=synthetic", "--format=csv"], "--format is 'csv'; the built-in data comes as"),
        ([], "--data is missing"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    program.FLAGS.parse(["describe", *arguments])
    with pytest.raises(InputError) as error:
        program.main([])
    assert message in str(error.value)
