"""Content that a format does not read: refused or reported, by what it is and not by a list of names."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.core.errors import InputError
from rmjax.data.records.formats import parse_sources
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.sources import BadRecord, ReadReport, memory_source
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer

QUESTION, GOOD, BAD = "What is the capital of France?", "It is Paris.", "It is Lyon, I think."
USER, CHOSEN, REJECTED = (
    {"role": role, "content": text} for role, text in (("user", QUESTION), ("assistant", GOOD), ("assistant", BAD))
)
PAIR = {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}
WHOLE = {"chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]}
WITHOUT = {"chosen": GOOD, "rejected": BAD}
NOTE = "Paris has been the capital since 987."


def read(*records, **options):
    """Returns the items of records, and the line about their fields."""
    report = ReadReport()
    items = list(parse_sources(memory_source(list(records)), ReadOptions(**options), report))
    return items, report.fields_line()


def reason(record, **options):
    """Returns why a record is refused; "" if it is not."""
    (item,), _ = read(record, **options)
    return item.reason if isinstance(item, BadRecord) else ""


DIALOGS = {
    "role and content": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    "from and value": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
    "one turn": [{"from": "human", "value": "Hi"}],
    "json": json.dumps([{"role": "user", "content": "Hi"}]),
    "object": {"id": 1, "turns": [{"from": "human", "value": "Hi"}]},
    "pairs": [["How are you doing?", "Fine."]],
    "speakers": [{"user": "How are you doing?", "assistant": "Fine."}],
    "transcript": "\n\nHuman: Hi\n\nAssistant: Hello",
    "columns": {"role": ["user", "assistant"], "content": ["Hi", "Hello"]},
    "rendered": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>",
}
NAMES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=9).map(lambda name: f"z_{name}_x")  # of no format


@pytest.mark.parametrize("layout", DIALOGS)
@pytest.mark.parametrize("record", [PAIR, WHOLE, WITHOUT], ids=["prompt", "whole", "no prompt"])
@settings(max_examples=5, deadline=None)
@given(name=NAMES)
def test_a_conversation_that_is_not_read_is_refused_under_any_name(record, layout, name):
    found = reason(record | {name: DIALOGS[layout]})
    assert repr(name) in found
    assert "a conversation" in found
    assert f"(data.columns = '{name}=_')" in found
    assert found.startswith("there is no prompt, but") == (record is WITHOUT)
    assert reason(record | {name: DIALOGS[layout]}, columns=(f"{name}=_",)) == ""


TEXTS = [NOTE, "Describe the image", "Why?  Because it is so.", "请写一首关于春天的诗", [NOTE, "3"], {"a": {"b": NOTE}}]


@pytest.mark.parametrize("text", TEXTS, ids=repr)
@settings(max_examples=5, deadline=None)
@given(name=NAMES)
def test_text_is_refused_without_a_prompt_and_reported_beside_one(text, name):
    found = reason(WITHOUT | {name: text})
    assert found == (
        f"there is no prompt, but {name!r}; it holds text and is not read: if it is the prompt, rename it "
        f"(data.columns = '{name}=prompt'), else leave it out (data.columns = '{name}=_')"
    )
    for record in (PAIR, WHOLE):
        items, line = read(record | {name: text})
        assert not isinstance(items[0], BadRecord)
        assert line.endswith(f"; not read: `{name}` (text, 100 %)")
    items, line = read(WITHOUT | {name: text}, columns=(f"{name}=_",))
    assert line == "fields: chosen, rejected; without a prompt: 1 (100 %)"


NOT_CONTENT = [
    "", " ", None, [], {}, "[]", "{}", "[null]", [None], 3, 0.5, True, [1, 2], {"temperature": 0.7},
    "math", "gpt-4o", "Llama 3.1 8B Instruct", "https://example.org/a b", "2024-05-01 10:00:00", "ab12" * 16,
    ["a", "b"], {"model": "gpt-4", "user": "u1"},
]  # fmt: skip


@pytest.mark.parametrize("value", NOT_CONTENT, ids=repr)
@pytest.mark.parametrize("record", [PAIR, WHOLE, WITHOUT], ids=["prompt", "whole", "no prompt"])
def test_empty_values_numbers_and_identifiers_are_no_loss(record, value):
    items, line = read(record | {"z_field": value})
    assert not isinstance(items[0], BadRecord)
    assert "not read" not in line


@pytest.mark.parametrize("value", ["", " ", None, [], {}, "[]", "{}", [[]], [["", ""]]], ids=repr)
@pytest.mark.parametrize("name", ["input", "history", "context", "chat_history", "question"])
def test_an_empty_part_of_the_prompt_is_no_loss(name, value):
    assert reason(PAIR | {name: value}) == ""


@pytest.mark.parametrize(
    "name", ["input", "context", "history", "query", "chat_history", "user_input", "inputContext", "original_question"]
)
@pytest.mark.parametrize("value", [NOTE, "Paris", "5", ["More of it"]], ids=repr)
def test_a_second_field_with_the_name_of_a_prompt_is_refused_beside_it(name, value):
    found = reason(PAIR | {name: value})
    assert found.startswith(f"{name!r} is not read, and holds text beside the prompt; ")
    assert f"leave it out (data.columns = '{name}=_')" in found
    assert reason(PAIR | {name: value}, columns=(f"{name}=_",)) == ""
    if isinstance(value, str):
        is_before = name.lower().endswith(("context", "history"))
        names = (name, "prompt") if is_before else ("prompt", name)
        assert f"join them in their order (data.columns = '{names[0]}=prompt','{names[1]}=prompt')" in found
        (item,), line = read(PAIR | {name: value}, columns=(f"{name}=prompt", "prompt=prompt"))
        assert item.conversations[0] == f"{value}\n{QUESTION}{GOOD}"
        assert line == f"fields: chosen, rejected, {name} -> prompt, prompt; without a prompt: 0"
    assert reason(WHOLE | {name: value}).startswith(f"{name!r} is not read, and holds text beside the conversation; ")


def test_a_history_of_messages_comes_before_the_prompt_and_one_of_pairs_is_not_joined():
    history = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    columns = ("turns=prompt", "prompt=prompt")
    assert f"(data.columns = {','.join(map(repr, columns))})" in reason(PAIR | {"turns": history})
    (item,), _ = read(PAIR | {"turns": history}, columns=columns)
    assert [turn["content"] for turn in item.conversations[0]] == ["Hi", "Hello", QUESTION, GOOD]
    assert "; put it into the conversation, or leave it out" in reason(PAIR | {"turns": [["How are you?", "Fine."]]})


MEDIA = [["a.png"], "clip.mp4", [{"bytes": b"\xff", "path": None}], b"\x89PNG", "data:audio/wav;base64,AAAA"]
SWIFT = {"messages": [USER, CHOSEN], "rejected_response": BAD}


@pytest.mark.parametrize("value", MEDIA, ids=repr)
@pytest.mark.parametrize("record", [PAIR, WHOLE, WITHOUT, SWIFT], ids=["prompt", "whole", "no prompt", "ms_swift"])
@settings(max_examples=3, deadline=None)
@given(name=NAMES)
def test_media_that_are_not_read_are_refused_under_any_name(record, value, name):
    assert reason(record | {name: value}) == (
        f"{name!r} is not read, and holds images, audio or video; only text is scored: remove the records that need "
        f"them, or leave it out (data.columns = '{name}=_')"
    )
    assert reason(record | {name: value}, columns=(f"{name}=_",)) == ""
    _, line = read(record | {name: value})
    assert line.endswith(f"`{name}` (media, 100 %)")


@pytest.mark.parametrize("value", [[], None, b"", {"bytes": None, "path": None}, [{"bytes": None, "path": None}], [""]])
def test_empty_media_are_no_loss(value):
    assert reason(PAIR | {"images": value}) == ""


def test_media_are_not_proposed_as_the_prompt():
    record = {"response_a": GOOD, "response_b": BAD, "winner": "model_a", "image_prompt": "a.png"}
    assert reason(record).startswith("no 'prompt'; expected a record such as")
    found = reason(record | {"user_question": QUESTION})
    assert found.startswith("there is no prompt, but 'user_question'; it holds text")


@pytest.mark.parametrize("options", [{"enable_thinking": False}, '{"enable_thinking": false}'])
def test_options_of_the_chat_template_are_refused(options):
    record = WHOLE | {"chat_template_kwargs": options}
    assert reason(record) == (
        "chat_template_kwargs is {'enable_thinking': False}; a record's options of the chat template are not applied: "
        "write their effect into its messages, or leave it out (data.columns = 'chat_template_kwargs=_')"
    )
    assert reason(record, columns=("chat_template_kwargs=_",)) == ""


@pytest.mark.parametrize("options", [None, "", "{}", {}, {"enable_thinking": None}])
def test_empty_options_of_the_chat_template_are_no_loss(options):
    assert reason(WHOLE | {"chat_template_kwargs": options}) == ""


@pytest.mark.parametrize("name", ["system", "system_message"])
def test_the_advice_for_a_system_message_beside_whole_conversations_is_read(name):
    record = WHOLE | {name: "Be nice to all."}
    assert f"(data.columns = '{name}=system_prompt')" in reason(record)
    (item,), line = read(record, columns=(f"{name}=system_prompt",))
    assert item.conversations[1] == [{"role": "system", "content": "Be nice to all."}, USER, REJECTED]
    assert "not read" not in line


@pytest.mark.parametrize("name", ["system", "system_message", "systemInstruction"])
def test_a_system_message_under_another_name_is_refused(name):
    record = {"prompt": [USER], "chosen": [CHOSEN], "rejected": [REJECTED], name: "Answer in one sentence."}
    assert f"if it is a system message, rename it (data.columns = '{name}=system_prompt')" in reason(record)
    (item,), _ = read(record, columns=(f"{name}=system_prompt",))
    assert item.conversations[0][0] == {"role": "system", "content": record[name]}
    record |= {"prompt": [{"role": "system", "content": "Be brief."}, USER]}
    if name != "system":
        assert "; put it into the conversation, or leave it out" in reason(record)


@pytest.mark.parametrize("name", ["rationale", "feedback", "explanation", "critique", "principle", "source", "title"])
def test_annotations_beside_a_prompt_are_reported_only(name):
    items, line = read(PAIR | {name: NOTE})
    assert not isinstance(items[0], BadRecord)
    assert line == f"fields: prompt, chosen, rejected; without a prompt: 0; not read: `{name}` (text, 100 %)"


@pytest.mark.parametrize("name", ["prompt_id", "question_type", "prompt_source", "context_length", "input_model"])
def test_other_fields_are_not_taken_for_prompts(name):
    assert reason(PAIR | {name: "a label"}) == ""


def test_a_label_with_the_name_of_a_prompt_is_no_loss_but_a_constant_instruction_is():
    items, line = read(*(PAIR | {"context": "chat"} for _ in range(4)))
    assert "not read" not in line
    items, line = read(*(PAIR | {"instruction": "Answer the question."} for _ in range(4)), format="pairs")
    assert all("'instruction' is not read" in item.reason for item in items)
    assert "`instruction` (text, 100 %)" in line


@pytest.mark.parametrize(
    "record",
    [
        WHOLE | {"messages": [USER, CHOSEN], "prompt_id": "ab" * 32},  # UltraFeedback-binarized
        WHOLE | {"prompt": QUESTION, "messages": [USER, CHOSEN]},
        WHOLE | {"question": QUESTION},
        WHOLE | {"conversations": None, "trajectory": [{"from": "human", "value": QUESTION}]},
        PAIR | {"messages": [USER, CHOSEN]},
        PAIR | {"question": f" {QUESTION}\n"},
        PAIR | {"generations": [GOOD, BAD], "original_chosen": GOOD},
        PAIR | {"rendered": f"<|user|>\n{QUESTION}\n<|assistant|>\n{GOOD}"},
        PAIR | {"log": json.dumps([USER, REJECTED])},
    ],
    ids=lambda record: list(record)[-1],
)
def test_content_that_is_in_the_conversations_is_no_loss(record):
    items, line = read(record)
    assert not isinstance(items[0], BadRecord), items[0].reason
    assert "not read" not in line


def test_a_copy_with_more_turns_is_a_loss():
    system = {"role": "system", "content": "Be brief."}
    assert "'z_copy' is not read, and holds a conversation" in reason(WHOLE | {"z_copy": [system, USER, CHOSEN]})


@pytest.mark.parametrize(
    ("records", "refused"),
    [
        ([WITHOUT | {"z": f"Question number {i} of it"} for i in range(4)], 4),
        ([WITHOUT | {"z": "Collected by the same people in May"} for _ in range(4)], 0),  # does not differ
        ([WITHOUT | {"z": f"Topic of group {i % 3}"} for i in range(64)], 0),  # few short values are labels
        ([WITHOUT | {"z": text} for text in ("Tell me a story", "Write a poem", "Hi")], 3),  # `Hi` is in a text's field
        ([WITHOUT | {"z": "Hi"}], 0),
    ],
)
def test_text_differs_from_record_to_record(records, refused):
    items, _ = read(*records)
    assert sum(isinstance(item, BadRecord) for item in items) == refused


@pytest.mark.parametrize(
    ("record", "options", "count"),
    [
        (PAIR, {}, 0),
        (PAIR, {"strings": "chat"}, 0),
        (WHOLE, {}, 0),
        (WITHOUT, {}, 1),
        (WITHOUT, {"strings": "chat"}, 1),
        (PAIR | {"prompt": ""}, {}, 1),
        (PAIR | {"prompt": " \n"}, {}, 1),
        ({"chosen": [CHOSEN], "rejected": [REJECTED]}, {}, 1),
        ({"chosen": [{"role": "system", "content": "s"}, CHOSEN], "rejected": [REJECTED]}, {}, 1),
        ({"prompt": [], "chosen": [CHOSEN], "rejected": [REJECTED]}, {}, None),  # refused
        ({"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}, {}, 0),
        ({"chosen": "[INST] Hi [/INST] Yes", "rejected": "[INST] Hi [/INST] No"}, {}, 0),
        ({"chosen": "The same start a", "rejected": "The same start b"}, {}, 1),
        ({"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2]}, {}, 0),
        ({"responses": ["a", "b"], "ranks": [1, 2]}, {}, 1),
        ({"prompt": "p", "responses": ["a"]}, {"labeled": False}, 0),
        ({"prompt": "p", "response": "a", "labels": {"x": 1}}, {}, 0),
        ({"response": "a", "labels": {"x": 1}}, {}, 1),
        ({"prompt": "p", "completions": ["s"], "labels": [True]}, {}, 0),
        ({"prompt": "p", "chosen": "a", "rejected": ""}, {"labeled": False}, 0),
        ({"chosen": "Yes", "rejected": "Yes, it is"}, {}, 1),
        ({"text": "t", "label": [1, 2]}, {}, 0),
        ({"messages": [USER, CHOSEN]}, {}, 0),
        ({"messages": [CHOSEN]}, {}, 1),
    ],
)
def test_comparisons_without_a_prompt_are_counted(record, options, count):
    report = ReadReport()
    (item,) = parse_sources(memory_source([record]), ReadOptions(**options), report)
    assert report.no_prompt == (count or 0), item
    assert isinstance(item, BadRecord) == (count is None), item


@pytest.mark.parametrize(
    ("record", "columns", "fields"),
    [
        (PAIR | {"margin": 1.0, "strength": None, "id": 3}, (), "prompt, chosen, rejected, margin"),
        (WITHOUT | {"question": QUESTION}, ("question=prompt",), "chosen, rejected, question -> prompt"),
        (WITHOUT | {"a": "p q", "b": "r"}, ("a=prompt", "b=prompt"), "chosen, rejected, a -> prompt, b -> prompt"),
        ({"q": QUESTION, "good": GOOD, "bad": BAD}, ("q=prompt", "good=chosen", "bad=rejected"),
         "q -> prompt, good -> chosen, bad -> rejected"),
        ({"context": [USER], "completions": [{"rank": 0, "completion": [CHOSEN]},
                                             {"rank": 1, "completion": [REJECTED]}]}, (),
         "context -> prompt, completions"),
        ({"question": {"problem": QUESTION, "ground_truth_answer": "9"},
          "label": {"steps": [{"completions": [{"text": "s", "rating": 1}]}]}}, (), "question -> prompt, label"),
        ({"prompt": QUESTION, "response": GOOD, "helpfulness": 3, "subset": "x"}, (),
         "prompt, response, helpfulness, subset"),
        ({"text": GOOD, "score": 0.5}, (), "text, score"),
    ],
)  # fmt: skip
def test_the_line_tells_what_the_fields_are_used_as(record, columns, fields):
    _, line = read(record, columns=columns)
    assert line == f"fields: {fields}; without a prompt: 0"


def test_a_renamed_field_that_replaces_a_prompt_is_not_a_silent_loss():
    found = reason(PAIR | {"question": NOTE}, columns=("question=prompt",))
    assert found.startswith("'prompt' is not read, and holds text beside the prompt; ")
    assert "join them in their order (data.columns = 'question=prompt','prompt=prompt')" in found
    (item,), _ = read(PAIR | {"question": NOTE}, columns=("question=prompt", "prompt=prompt"))
    assert item.conversations[0] == f"{NOTE}\n{QUESTION}{GOOD}"


def test_the_alpaca_form_with_its_instruction_renamed_loses_nothing():
    record = {"instruction": "Translate it.", "input": "Bonjour", "history": [["Hi", "Hello there, you."]]} | WITHOUT
    assert "'input'" in reason(record, columns=("instruction=prompt",))
    assert "'history'" in reason(record, columns=("instruction=prompt", "input=prompt"))
    empty = record | {"input": "", "history": [], "tools": "[]"}
    (item,), line = read(empty, columns=("instruction=prompt",))
    assert item.conversations[0] == f"Translate it.{GOOD}"
    assert "not read" not in line


def test_of_several_fields_those_with_the_name_of_a_prompt_are_named():
    assert reason(WITHOUT | {"rationale": NOTE, "query": "Hi"}).startswith("there is no prompt, but 'query'; ")
    found = reason(WITHOUT | {"z_one": NOTE, "z_two": GOOD + NOTE})
    assert found.startswith("there is no prompt, but 'z_one', 'z_two'; they hold text and are not read: rename those ")
    assert "(data.columns = 'z_one=prompt','z_two=prompt' joins them)" in found


def test_a_missing_prompt_is_told_before_what_else_is_wrong_with_a_record():
    expected = "there is no prompt, but 'question'; it holds text and is not read"
    assert reason({"question": "q", "response": "a"}).startswith(expected)
    assert reason({"question": "q", "completions": ["s"], "labels": [True]}).startswith(expected)
    assert reason({"prompt": "p", "question": "q", "response": "a"}).startswith("no label; ")
    assert reason({"chosen": [USER, CHOSEN], "question": QUESTION}).startswith("no 'rejected'")
    assert reason({"response": "a", "rationale": NOTE}, format="regression").startswith("no label; ")


def test_the_record_of_the_output_keeps_fields_that_are_left_out():
    (item,), _ = read(WITHOUT | {"q": QUESTION, "note": NOTE}, columns=("q=prompt", "note=_"))
    assert item.record == WITHOUT | {"prompt": QUESTION, "note": NOTE}
    assert type(item.record) is dict


def test_refused_records_are_counted_by_kind_and_their_content_is_reported():
    records = [PAIR | {"context": f"{NOTE} {i}"} for i in range(3)] + [PAIR | {"context": ""}]
    comparisons, report = read_comparisons(memory_source(records), ReadOptions(on_bad_record="skip"))
    assert len(comparisons) == 1
    assert report.skipped == {"'context' is not read, and holds text beside the prompt": 3}
    assert report.fields_line().endswith("not read: `context` (text, 75 %)")
    with pytest.raises(InputError, match=r"^records:1: 'context' is not read, and holds text beside the prompt; "):
        read_comparisons(memory_source(records), ReadOptions())


def test_the_report_is_kept_in_the_token_cache(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(PAIR | {"rationale": f"{NOTE} {i}"}) + "\n" for i in range(3)))
    load = lambda: load_dataset(
        str(source), Tokenizer.load(""), DatasetOptions(), split="train", cache_dir=tmp_path, progress=False
    )[1]
    first, second = load(), load()
    assert second.cached
    assert not first.cached
    assert first.fields_line() == second.fields_line()
    assert second.fields_line().endswith("not read: `rationale` (text, 100 %)")


def test_a_format_of_ones_own_decides_what_is_left_out_and_the_rest_is_reported(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "def parse(record):\n"
        "    return {'prompt': f\"Say: {record['task']}\", 'chosen': record['good'], 'rejected': record['bad']}\n"
    )
    record = {"task": QUESTION, "good": GOOD, "bad": BAD, "context": NOTE, "log": DIALOGS["from and value"]}
    (item,), line = read(record, format=str(path))
    assert item.conversations[0] == f"Say: {QUESTION}{GOOD}"
    assert line == (
        "fields: task, good, bad; without a prompt: 0; not read: `context` (text, 100 %), `log` (conversation, 100 %)"
    )
    path.write_text("def parse(record):\n    return {'chosen': record['good'], 'rejected': record['bad']}\n")
    (item,), line = read(record, format=str(path))
    assert "without a prompt: 1 (100 %)" in line
    assert "`task` (text, 100 %)" in line
