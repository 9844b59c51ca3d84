import gzip
import json

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.data.records.formats.examples import missing
from rmjax.data.records.sources import ReadReport
from rmjax.data.tokens.character_limit import CharacterLimit
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions, tokenize
from rmjax.data.tokens.tokenizer import Tokenizer, byte_level

PAIR = {"prompt": "Is it?", "chosen": " Yes.", "rejected": " No."}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load("")


def write(path, records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return (str(path),)


def load(sources, tokenizer, **options):
    return load_dataset(sources, tokenizer, DatasetOptions(**options), split="train")


def test_shared_prompt_is_stored_once(tokenizer, tmp_path):
    dataset, report = load(write(tmp_path / "a.jsonl", [PAIR]), tokenizer)
    tree = dataset.tree(0)
    assert tokenizer.base.decode(tree.prefix) == "Is it? "
    assert [tokenizer.base.decode(branch) for branch in tree.branches] == ["Yes.<eos>", "No.<eos>"]
    assert (report.tokens, report.unique_tokens) == (12 + 11, 7 + 5 + 4)


def test_overlong_comparisons_are_dropped_and_counted(tokenizer, tmp_path):
    source = write(tmp_path / "a.jsonl", [PAIR, PAIR | {"prompt": "x" * 40}])
    dataset, report = load(source, tokenizer, max_length=20)
    assert (len(dataset), report.dropped_overlong) == (1, 1)
    assert "1 dropped as longer than max_length" in str(report)


def test_report_names_the_causes_with_count_and_first_example(tokenizer, tmp_path):
    long, short = PAIR | {"prompt": "x" * 40}, {"chosen": "a"}
    source = write(tmp_path / "a.jsonl", [short, long, long | {"prompt": "y" * 50}, short, short, PAIR])
    for cached in (False, True):
        dataset, report = load(source, tokenizer, max_length=20, on_bad_record="skip")
        assert (len(dataset), report.cached) == (1, cached)
        assert report.causes() == [
            f"3 records skipped (first: {source[0]}:1: {missing('rejected', 'pairs')})",
            f"2 comparisons longer than max_length = 20 (first: {source[0]}:2, 46 tokens)",
        ]
        assert (report.first_overlong, report.first_overlong_length) == (f"{source[0]}:2", 46)
    assert "1 comparison of 6 records (pairs, tokens from cache)" in str(report)
    assert "2 dropped as longer than max_length = 20" in str(report)
    report = load(write(tmp_path / "b.jsonl", [PAIR]), tokenizer)[1]
    assert report.causes() == []
    assert "1 comparison of 1 record (pairs); nothing dropped" in str(report)


def test_overlong_prompts_are_truncated_on_the_left(tokenizer, tmp_path):
    source = write(tmp_path / "a.jsonl", [PAIR | {"prompt": "x" * 40 + "y"}, PAIR | {"chosen": "z" * 60}])
    dataset, report = load(source, tokenizer, max_length=20, on_overlong="truncate_prompt")
    assert (len(dataset), report.truncated, report.dropped_overlong) == (1, 1, 1)
    tree = dataset.tree(0)
    assert tree.longest == 20
    assert tokenizer.base.decode(tree.prefix).endswith("xy ")


@pytest.mark.parametrize("chat", [False, True])
def test_a_text_of_too_many_characters_is_not_tokenized(tokenizer, tmp_path, monkeypatch, chat):
    wrap = lambda text: [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}] if chat else text
    short = {"chosen": wrap("a"), "rejected": wrap("b")}
    long = {"chosen": wrap("a " * 1_000_000), "rejected": wrap("b")}
    source, given = write(tmp_path / "a.jsonl", [long, short, long]), []
    encode = Tokenizer.encode_texts
    record = lambda self, texts, *more: given.extend(texts) or encode(self, texts, *more)
    monkeypatch.setattr(Tokenizer, "encode_texts", record)
    dataset, report = load(source, tokenizer, max_length=1000)
    assert (len(dataset), report.dropped_overlong, len(given)) == (1, 2, 4)
    assert max(map(len, given)) < 100
    assert "2 comparisons longer than max_length = 1000 (first: " in report.causes()[0]
    assert report.causes()[0].endswith(" characters)")
    with pytest.raises(InputError, match=r"a\.jsonl:1: 2,000,\d\d\d characters, more than data.max_length = 1000"):
        load(source, tokenizer, max_length=1000, on_overlong="error")
    load(source, tokenizer, max_length=1000, on_overlong="truncate_prompt")  # the prompt's tokens decide
    assert max(map(len, given)) > 1_000_000


def test_responses_of_too_many_characters_are_left_out_of_groups_as_others_are(tokenizer, tmp_path, monkeypatch):
    records = [{"prompt": "p", "response": "r" * n, "labels": {"x": n}} for n in (5, 30, 2000, 6)]
    source = write(tmp_path / "in.jsonl", records)
    results = []
    for exceeds in (CharacterLimit.exceeds, lambda *_: False):
        monkeypatch.setattr(CharacterLimit, "exceeds", exceeds)
        monkeypatch.setenv("RMJAX_CACHE", str(tmp_path / str(len(results))))
        dataset, report = load(source, tokenizer, max_length=20, group_prompts=True)
        results.append((len(dataset), report, dataset.labels.tolist(), dataset.tokens.tolist()))
    assert results[0] == results[1]
    assert results[0][1].dropped_responses == 2


def test_on_overlong_error_raises(tokenizer, tmp_path):
    source = write(tmp_path / "a.jsonl", [PAIR | {"prompt": "x" * 40}])
    with pytest.raises(InputError, match=r"a\.jsonl:1: 46 tokens, more than data.max_length = 20"):
        load(source, tokenizer, max_length=20, on_overlong="error")


@pytest.mark.parametrize(("name", "count"), [("vader_pairs/test.jsonl", 1096), ("hh_harmless/test.jsonl.gz", 322)])
def test_all_pairs_of_real_data_are_read(shared_data, name, count):
    tokenizer = Tokenizer.load(str(shared_data / "models" / "smollm2"))
    dataset, report = load((str(shared_data / "data" / name),), tokenizer, max_length=4096)
    assert (len(dataset), report.records, report.format) == (count, count, "pairs")
    assert report.unique_tokens < report.tokens


BAD = [
    ("{", "a.jsonl:2: not JSON"),
    ("[1]", "a.jsonl:2: expected a JSON object, found list"),
    ({"prompt": "p", "rejected": "r"}, "a.jsonl:2: no 'chosen'"),
    (PAIR | {"chosen": "  "}, "a.jsonl:2: chosen is empty"),
    (PAIR | {"rejected": " Yes."}, "a.jsonl:2: chosen equals rejected"),
    (PAIR | {"chosen": 3}, "a.jsonl:2: chosen is 3; expected a string or a list of messages"),
    (PAIR | {"prompt": {"role": "user", "content": "x"}}, "a.jsonl:2: prompt is a dict but chosen a string"),
    (
        {"chosen": [{"content": "x"}], "rejected": "r"},
        "a.jsonl:2: message[0] of chosen is {'content': 'x'}; expected an object with role",
    ),
    (PAIR | {"margin": "big"}, "a.jsonl:2: margin is 'big'; expected a finite number"),
    (PAIR | {"margin": float("nan")}, "a.jsonl:2: margin is nan"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_bad_record_raises_or_is_skipped(tokenizer, tmp_path, record, message):
    source = write(tmp_path / "a.jsonl", [PAIR, record, PAIR])
    with pytest.raises(InputError) as error:
        load(source, tokenizer)
    assert message in str(error.value)
    dataset, report = load(source, tokenizer, on_bad_record="skip")
    assert len(dataset) == 2
    assert sum(report.skipped.values()) == 1
    assert "1 skipped" in str(report)


def message(role, content):
    return {"role": role, "content": content}


WHOLE = {side: [message("user", "Q?"), message("assistant", text)] for side, text in
         (("chosen", "y"), ("rejected", "n"))}  # fmt: skip
REPLY = {side: messages[1:] for side, messages in WHOLE.items()}


@pytest.mark.parametrize(
    "record",
    [WHOLE, REPLY | {"prompt": "Q?"}, REPLY | {"prompt": [message("user", "Q?")]},
     WHOLE | {"prompt": "Q?"}, WHOLE | {"prompt": [message("user", "Q?")]}],
)  # fmt: skip
def test_equivalent_chat_records_give_the_same_tree(tokenizer, tmp_path, record):
    dataset, _ = load(write(tmp_path / "a.jsonl", [record]), tokenizer)
    tree = dataset.tree(0)
    assert tokenizer.base.decode(tree.prefix) == "<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n"
    assert [tokenizer.base.decode(b) for b in tree.branches] == ["y<|im_end|>\n", "n<|im_end|>\n"]


MORE_BAD = [
    (WHOLE | {"prompt": "Other?"}, "chosen starts with a 'user' message that is not the prompt"),
    (REPLY | {"prompt": "Q?", "chosen": [message("user", "Q?")]}, "chosen holds the prompt and no response"),
    (REPLY | {"prompt": [message("user", "Q?")], "rejected": [message("user", "Q?")]}, "rejected holds the prompt"),
    ('{"chosen": "a\\ud800", "rejected": "b"}', "half a surrogate pair"),
    ('{"chosen": "a", "rejected": "b", "margin": ' + "1" * 5000 + "}", "not JSON"),
    ('{"chosen": "a", "rejected": "b", "margin": 1' + "0" * 400 + "}", "expected a finite number"),
    ('{"chosen": ' + "[" * 100_000 + "]" * 100_000 + "}", "not JSON"),
]


@pytest.mark.parametrize(("record", "reason"), MORE_BAD, ids=lambda value: str(value)[:40])
def test_malformed_record_raises_with_its_line(tokenizer, tmp_path, record, reason):
    source = write(tmp_path / "a.jsonl", [PAIR, record])
    with pytest.raises(InputError) as error:
        load(source, tokenizer)
    assert "a.jsonl:2: " in str(error.value)
    assert reason in str(error.value)
    dataset, report = load(source, tokenizer, on_bad_record="skip")
    assert (len(dataset), sum(report.skipped.values())) == (1, 1)


def test_surrogate_pair_and_null_margin_are_accepted(tokenizer, tmp_path):
    source = write(tmp_path / "a.jsonl", ['{"chosen": "\\ud83d\\ude00", "rejected": "b", "margin": null}'])
    dataset, _ = load(source, tokenizer)
    tree = dataset.tree(0)
    assert tokenizer.base.decode(tree.branches[0]) == "\U0001f600<eos>"
    assert tree.edges[0].margin == 0


def test_skipped_records_are_counted_by_kind(tokenizer, tmp_path):
    source = write(tmp_path / "a.jsonl", [PAIR] + [PAIR | {"margin": f"x{i}"} for i in range(5)])
    _, report = load(source, tokenizer, on_bad_record="skip")
    assert report.skipped == {"margin is not a finite number": 5}


@pytest.fixture
def strict():
    """A tokenizer whose template requires a user message first and trims content, as Llama's and Mistral's."""
    base = byte_level()
    base.chat_template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% for message in messages %}<|im_start|>{{ message.content | trim }}<|im_end|>{% endfor %}"
    )
    return Tokenizer(base, "strict")


SPACED = WHOLE | {"rejected": [message("user", "Q?"), message("assistant", "y ")]}


@pytest.mark.parametrize(
    ("record", "reason"), [(REPLY, "the chat template fails on these messages (roles must alternate)"),
                           (SPACED, "the better and the worse response have the same tokens")],
)  # fmt: skip
def test_template_error_raises_with_the_line_or_is_skipped(strict, tmp_path, record, reason):
    source = write(tmp_path / "a.jsonl", [WHOLE, record, WHOLE])
    with pytest.raises(InputError) as error:
        load(source, strict)
    assert f"a.jsonl:2: {reason}" in str(error.value)
    dataset, report = load(source, strict, on_bad_record="skip")
    assert [dataset.where(i).rpartition(":")[2] for i in range(len(dataset))] == ["1", "3"]
    assert report.skipped == {reason.split(" (")[0]: 1}


def test_missing_template_raises_even_when_bad_records_are_skipped(tokenizer, tmp_path):
    base = byte_level()
    base.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        load(write(tmp_path / "a.jsonl", [WHOLE]), Tokenizer(base, "bare"), on_bad_record="skip")


def test_unknown_first_record_raises_with_its_line(tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"a\.jsonl:2: no format has the fields foo; rename fields"):
        load(write(tmp_path / "a.jsonl", ["{", {"foo": 1}]), tokenizer)
    with pytest.raises(InputError, match=r"a\.jsonl:1: not JSON"):
        load(write(tmp_path / "a.jsonl", ["{", "}"]), tokenizer)


def test_nemo_text_lines_are_pairs_without_eos(tokenizer, tmp_path):
    source = write(tmp_path / "a.jsonl", [{"text": "q good"}, {"text": "q bad"}])
    dataset, report = load(source, tokenizer)
    assert report.format == "nemo_binary"
    assert [tokenizer.base.decode(b) for b in dataset.tree(0).branches] == ["good", "bad"]
    source = write(tmp_path / "b.jsonl", [{"text": "q good"}, {"text": "q bad"}, {"text": "alone"}])
    with pytest.raises(InputError, match=r"b\.jsonl:3: the last line has no partner"):
        load(source, tokenizer)


@pytest.mark.parametrize("name", ["missing.jsonl", "*.jsonl", "data.xml"])
def test_missing_source_raises_with_its_name(tokenizer, tmp_path, name):
    (tmp_path / "data.xml").write_text("<x/>")
    with pytest.raises(
        InputError, match=r"data '.*(no such file|no file matches|expected a JSONL, Parquet|this is XML)"
    ):
        load((str(tmp_path / name),), tokenizer)


def test_truncated_gzip_raises_with_its_name(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"chosen": "a", "rejected": "b"}\n' * 500)[:-20])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: truncated or damaged gzip"):
        load((str(path),), tokenizer)


def test_empty_file_raises_with_its_name(tokenizer, tmp_path):
    with pytest.raises(InputError, match="holds no record"):
        load(write(tmp_path / "a.jsonl", ["", " "]), tokenizer)


def test_lengths_equal_those_of_the_trees(tokenizer):
    dataset, _ = load_dataset("synthetic", tokenizer, DatasetOptions(), split="train", synthetic_size=20)
    assert dataset.lengths.tolist() == [dataset.tree(i).length for i in range(20)]
    assert tokenize([], tokenizer, DatasetOptions(), "none", ReadReport())[0].lengths.tolist() == []
    assert np.isfinite(dataset.ceiling).all()


def test_overlong_rules_for_single_responses_and_groups(tokenizer, tmp_path):
    records = [{"prompt": "p" * 20, "response": "r" * n, "labels": {"x": 1}} for n in (5, 30, 6)]
    source = write(tmp_path / "in.jsonl", records)
    dataset, report = load(source, tokenizer, max_length=40)
    assert (len(dataset), report.dropped_overlong) == (2, 1)
    dataset, report = load(source, tokenizer, max_length=40, on_overlong="truncate_prompt")
    assert (len(dataset), report.truncated) == (3, 1)
    assert len(dataset.tree(1).prefix) == 40 - 31
    dataset, report = load(source, tokenizer, max_length=40, group_prompts=True)
    assert (len(dataset), report.dropped_responses, len(dataset.tree(0).branches)) == (1, 1, 2)


def test_attributes_absent_from_a_record_are_nan(tokenizer, tmp_path):
    records = [{"prompt": "p", "response": "r", "labels": labels} for labels in ({"x": 1}, {"y": 2, "x": 3})]
    dataset, _ = load(write(tmp_path / "in.jsonl", records), tokenizer)
    assert dataset.attributes == ("x", "y")
    np.testing.assert_array_equal(dataset.labels, [[1, np.nan], [3, 2]])
