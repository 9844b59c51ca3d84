import gzip
import json

import numpy as np
import pytest
import tokenizers
import transformers

from rmjax.core.errors import InputError
from rmjax.data.tokens.load import Options, Report, load_dataset, tokenize
from rmjax.data.tokens.tokenizer import Tokenizer, byte_level

PAIR = {"prompt": "Is it?", "chosen": " Yes.", "rejected": " No."}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.load("")


def write(path, records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return (str(path),)


def load(sources, tokenizer, **options):
    return load_dataset(sources, tokenizer, Options(**options), split="train")


def test_the_built_in_tokenizer_survives_saving(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "Grüße, \n 12 \U0001f600"
    assert again(text)["input_ids"] == byte_level()(text)["input_ids"]
    assert again.decode(again(text)["input_ids"]) == text
    assert again.chat_template == tokenizer.base.chat_template


def test_strings_are_joined_and_closed_once(tokenizer):
    eos = tokenizer.base.eos_token_id
    plain, closed, as_is = (
        tokenizer.encode([text], close)[0] for text, close in (("ab", True), ("ab<eos>", True), ("ab", False))
    )
    assert plain.tolist() == closed.tolist() == [*as_is.tolist(), eos]


def test_never_two_bos(tokenizer, tmp_path):
    base = byte_level()
    base.add_special_tokens({"bos_token": "<bos>"})
    from tokenizers.processors import TemplateProcessing

    bos = base.bos_token_id
    base.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    base.chat_template = "<bos>" + base.chat_template
    own = Tokenizer(base, "with bos")
    messages = [{"role": "user", "content": "hi"}]
    for conversation, close in (("hi", True), ("<bos>hi", True), (messages, True), (own.render(messages), False)):
        tokens = own.encode([conversation], close)[0]
        assert (tokens == bos).sum() == 1, conversation


def test_words_keep_their_spaces():
    """A decoder of SentencePiece's kind drops the space before the first token of what it is given."""
    text = "is it? é"
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", "▁a", "a", "▁is", "▁it", "?", "▁é", "▁"])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.Metaspace(), tokenizers.pre_tokenizers.Split("?", "isolated")]
    )
    model.decoder = tokenizers.decoders.Metaspace()
    own = Tokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>"), "pieces")
    tokens = own.encode([text], False)[0]
    assert own.words(tokens) == [" is", " it", "?", " é"]
    byte_wise = Tokenizer.load("")
    assert byte_wise.words(byte_wise.encode(["a é\n"], False)[0]) == ["a", " ", "\ufffd", "\ufffd", "\n"]


def test_messages_need_a_template():
    base = byte_level()
    base.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        Tokenizer(base, "bare").encode([[{"role": "user", "content": "hi"}]])


def test_the_shared_prompt_is_kept_once(tokenizer, tmp_path):
    dataset, report = load(write(tmp_path / "a.jsonl", [PAIR]), tokenizer)
    tree = dataset.tree(0)
    assert tokenizer.base.decode(tree.prefix) == "Is it? "
    assert [tokenizer.base.decode(branch) for branch in tree.branches] == ["Yes.<eos>", "No.<eos>"]
    assert (report.tokens, report.unique_tokens) == (12 + 11, 7 + 5 + 4)


def test_the_cache_hits_misses_and_heals(tokenizer, tmp_path):
    source, cache = write(tmp_path / "a.jsonl", [PAIR] * 3), tmp_path / "own"
    run = lambda: load_dataset(source, tokenizer, Options(), split="train", cache_dir=cache)
    first, report = run()
    assert not report.cached
    second, report = run()
    assert report.cached
    assert second.tree(2).prefix.tolist() == first.tree(2).prefix.tolist()
    [file] = (cache / "tokens").iterdir()
    file.write_bytes(file.read_bytes()[:200])
    assert not run()[1].cached
    assert run()[1].cached
    write(tmp_path / "a.jsonl", [PAIR] * 4)
    assert len(run()[0]) == 4


def test_overlong_is_dropped_and_counted(tokenizer, tmp_path):
    source = write(tmp_path / "a.jsonl", [PAIR, PAIR | {"prompt": "x" * 40}])
    dataset, report = load(source, tokenizer, max_length=20)
    assert (len(dataset), report.dropped_overlong) == (1, 1)
    assert "1 dropped as longer than max_length" in str(report)


def test_overlong_prompts_are_truncated_on_the_left(tokenizer, tmp_path):
    source = write(tmp_path / "a.jsonl", [PAIR | {"prompt": "x" * 40 + "y"}, PAIR | {"chosen": "z" * 60}])
    dataset, report = load(source, tokenizer, max_length=20, on_overlong="truncate_prompt")
    assert (len(dataset), report.truncated, report.dropped_overlong) == (1, 1, 1)
    tree = dataset.tree(0)
    assert tree.longest == 20
    assert tokenizer.base.decode(tree.prefix).endswith("xy ")


def test_overlong_is_an_error_when_asked(tokenizer, tmp_path):
    source = write(tmp_path / "a.jsonl", [PAIR | {"prompt": "x" * 40}])
    with pytest.raises(InputError, match=r"a\.jsonl:1: 46 tokens, more than data.max_length = 20"):
        load(source, tokenizer, max_length=20, on_overlong="error")


def test_a_vocabulary_larger_than_the_models_is_refused(tokenizer):
    tokenizer.check_vocabulary(260)
    with pytest.raises(InputError, match="ids up to 259; the model's vocab_size is 259"):
        tokenizer.check_vocabulary(259)


def test_a_missing_tokenizer_is_one_message(tmp_path):
    with pytest.raises(InputError, match="could not be loaded"):
        Tokenizer.load(str(tmp_path))


def test_the_pad_token_of_an_artifact_ends_no_conversation(tokenizer, shared_data):
    assert tokenizer.with_separate_pad().base.pad_token == "<pad>"
    smollm2 = Tokenizer.load(str(shared_data / "models" / "smollm2"))
    assert smollm2.base.pad_token == smollm2.base.eos_token
    assert smollm2.with_separate_pad().base.pad_token == "<|endoftext|>"


@pytest.mark.parametrize(("name", "count"), [("vader_pairs/test.jsonl", 1096), ("hh_harmless/test.jsonl.gz", 322)])
def test_real_pairs_are_read_whole(shared_data, name, count):
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
    (PAIR | {"prompt": [{"role": "user", "content": "x"}]}, "a.jsonl:2: prompt is a list but chosen a string"),
    ({"chosen": [{"content": "x"}], "rejected": "r"}, "a.jsonl:2: chosen holds the message"),
    (PAIR | {"margin": "big"}, "a.jsonl:2: margin is 'big'; expected a finite number"),
    (PAIR | {"margin": float("nan")}, "a.jsonl:2: margin is nan"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_a_bad_record_is_named_or_counted(tokenizer, tmp_path, record, message):
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
def test_every_way_to_write_a_chat_gives_one_conversation(tokenizer, tmp_path, record):
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
def test_odd_records_are_refused_with_their_line(tokenizer, tmp_path, record, reason):
    source = write(tmp_path / "a.jsonl", [PAIR, record])
    with pytest.raises(InputError) as error:
        load(source, tokenizer)
    assert "a.jsonl:2: " in str(error.value)
    assert reason in str(error.value)
    dataset, report = load(source, tokenizer, on_bad_record="skip")
    assert (len(dataset), sum(report.skipped.values())) == (1, 1)


def test_a_whole_surrogate_pair_and_a_null_margin_are_fine(tokenizer, tmp_path):
    source = write(tmp_path / "a.jsonl", ['{"chosen": "\\ud83d\\ude00", "rejected": "b", "margin": null}'])
    dataset, _ = load(source, tokenizer)
    tree = dataset.tree(0)
    assert tokenizer.base.decode(tree.branches[0]) == "\U0001f600<eos>"
    assert tree.edges[0].margin == 0


def test_like_faults_are_counted_as_one(tokenizer, tmp_path):
    source = write(tmp_path / "a.jsonl", [PAIR] + [PAIR | {"margin": f"x{i}"} for i in range(5)])
    _, report = load(source, tokenizer, on_bad_record="skip")
    assert report.skipped == {"margin is no finite number": 5}


@pytest.fixture
def strict():
    """A tokenizer whose template wants a user first and trims content, as Llama's and Mistral's do."""
    base = byte_level()
    base.chat_template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% for message in messages %}<|im_start|>{{ message.content | trim }}<|im_end|>{% endfor %}"
    )
    return Tokenizer(base, "strict")


SPACED = WHOLE | {"rejected": [message("user", "Q?"), message("assistant", "y ")]}


@pytest.mark.parametrize(
    ("record", "reason"), [(REPLY, "the chat template refuses these messages (roles must alternate)"),
                           (SPACED, "the better and the worse response give the same tokens")],
)  # fmt: skip
def test_what_only_the_template_shows_is_refused_with_its_line(strict, tmp_path, record, reason):
    source = write(tmp_path / "a.jsonl", [WHOLE, record, WHOLE])
    with pytest.raises(InputError) as error:
        load(source, strict)
    assert f"a.jsonl:2: {reason}" in str(error.value)
    dataset, report = load(source, strict, on_bad_record="skip")
    assert [where.rpartition(":")[2] for where in dataset.where] == ["1", "3"]
    assert report.skipped == {reason.split(" (")[0]: 1}


def test_messages_without_any_template_are_never_skipped(tokenizer, tmp_path):
    base = byte_level()
    base.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        load(write(tmp_path / "a.jsonl", [WHOLE]), Tokenizer(base, "bare"), on_bad_record="skip")


def test_a_cache_that_cannot_be_written_costs_time_only(tokenizer, tmp_path):
    (tmp_path / "file").write_text("no directory")
    source = write(tmp_path / "a.jsonl", [PAIR])
    dataset, report = load_dataset(source, tokenizer, Options(), split="train", cache_dir=tmp_path / "file")
    assert len(dataset) == 1
    assert "tokens not cached" in str(report)


def test_an_unknown_first_record_is_named_where_it_stands(tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"a\.jsonl:2: the record has the keys \['foo'\]"):
        load(write(tmp_path / "a.jsonl", ["{", {"foo": 1}]), tokenizer)
    with pytest.raises(InputError, match=r"a\.jsonl:1: not JSON"):
        load(write(tmp_path / "a.jsonl", ["{", "}"]), tokenizer)


def test_nemo_lines_are_pairs_as_they_are(tokenizer, tmp_path):
    source = write(tmp_path / "a.jsonl", [{"text": "q good"}, {"text": "q bad"}])
    dataset, report = load(source, tokenizer)
    assert report.format == "nemo_binary"
    assert [tokenizer.base.decode(b) for b in dataset.tree(0).branches] == ["good", "bad"]
    source = write(tmp_path / "b.jsonl", [{"text": "q good"}, {"text": "q bad"}, {"text": "alone"}])
    with pytest.raises(InputError, match=r"b\.jsonl:3: the last line has no partner"):
        load(source, tokenizer)


@pytest.mark.parametrize("name", ["missing.jsonl", "*.jsonl", "data.xml"])
def test_a_missing_source_is_named(tokenizer, tmp_path, name):
    (tmp_path / "data.xml").write_text("<x/>")
    with pytest.raises(InputError, match=r"data '.*(no such file|no file matches|expected a JSONL, Parquet)"):
        load((str(tmp_path / name),), tokenizer)


def test_a_truncated_gzip_is_named(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"chosen": "a", "rejected": "b"}\n' * 500)[:-20])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: truncated or damaged gzip"):
        load((str(path),), tokenizer)


def test_an_empty_file_is_named(tokenizer, tmp_path):
    with pytest.raises(InputError, match="holds no record"):
        load(write(tmp_path / "a.jsonl", ["", " "]), tokenizer)


def test_unlabelled_lengths_agree_with_trees(tokenizer):
    dataset, _ = load_dataset("synthetic", tokenizer, Options(), split="train", synthetic_size=20)
    assert dataset.lengths.tolist() == [dataset.tree(i).length for i in range(20)]
    assert tokenize([], tokenizer, Options(), Report("none")).lengths.tolist() == []
    assert np.isfinite(dataset.ceiling).all()


def test_overlong_rules_hold_for_single_responses_and_groups(tokenizer, tmp_path):
    records = [{"prompt": "p" * 20, "response": "r" * n, "labels": {"x": 1}} for n in (5, 30, 6)]
    source = write(tmp_path / "in.jsonl", records)
    dataset, report = load(source, tokenizer, max_length=40)
    assert (len(dataset), report.dropped_overlong) == (2, 1)
    dataset, report = load(source, tokenizer, max_length=40, on_overlong="truncate_prompt")
    assert (len(dataset), report.truncated) == (3, 1)
    assert len(dataset.tree(1).prefix) == 40 - 31
    dataset, report = load(source, tokenizer, max_length=40, group_prompts=True)
    assert (len(dataset), report.dropped_responses, len(dataset.tree(0).branches)) == (1, 1, 2)


def test_attributes_that_some_records_lack_are_missing_there(tokenizer, tmp_path):
    records = [{"prompt": "p", "response": "r", "labels": labels} for labels in ({"x": 1}, {"y": 2, "x": 3})]
    dataset, _ = load(write(tmp_path / "in.jsonl", records), tokenizer)
    assert dataset.attributes == ("x", "y")
    np.testing.assert_array_equal(dataset.labels, [[1, np.nan], [3, 2]])


def test_a_bos_that_the_tokenizer_adds_is_known():
    plain, base = Tokenizer.load(""), byte_level()
    base.add_special_tokens({"bos_token": "<bos>"})
    assert plain.opening == Tokenizer(base, "a").opening == ""
    base.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", base.bos_token_id)]
    )
    assert Tokenizer(base, "a").opening == "<bos>"
    assert plain.around == ("<pad>", "<eos>")


def test_a_swapped_pair_is_the_same_comparison(tokenizer, tmp_path):
    swapped = PAIR | {"chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
    one, _ = load(write(tmp_path / "a.jsonl", [PAIR]), tokenizer)
    other, _ = load(write(tmp_path / "b.jsonl", [PAIR | {"prompt": "Else?"}, swapped]), tokenizer)
    assert other.shared(one) == [1]
