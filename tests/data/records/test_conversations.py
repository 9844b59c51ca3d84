"""Prompt and response to one conversation."""

import pytest

from rmjax.data.records.conversations import join_conversation
from rmjax.data.records.fields import BadField, messages
from rmjax.data.records.formats import parse_sources
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.sources import memory_source

SYSTEM = {"role": "system", "content": "s"}
FIRST, FIRST_ANSWER = {"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}
USER, ANSWER = {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}
PROMPT = [SYSTEM, FIRST, FIRST_ANSWER, USER]
WHOLE = [*PROMPT, ANSWER]
TRAINING, SCORING = ReadOptions(), ReadOptions(labeled=False)


@pytest.mark.parametrize("strings", ["joined", "chat"])
def test_a_string_answers_a_prompt_of_messages(strings):
    options = ReadOptions(strings=strings)
    assert join_conversation(PROMPT, "a2", "chosen", options) == WHOLE
    (found,) = parse_sources(memory_source([{"prompt": PROMPT, "chosen": "a2", "rejected": "b"}]), options)
    assert found.conversations == (WHOLE, [*PROMPT, {"role": "assistant", "content": "b"}])


@pytest.mark.parametrize("repeated", [0, 1, 3, 4])
def test_the_prompts_last_turns_at_the_start_of_the_response_are_not_doubled(repeated):
    answer = [*PROMPT[len(PROMPT) - repeated :], ANSWER]
    assert join_conversation(PROMPT, answer, "chosen", TRAINING) == WHOLE


def test_turns_that_are_not_the_prompts_are_refused():
    with pytest.raises(BadField, match=r"^chosen starts with a 'user' message that is not the prompt"):
        join_conversation(PROMPT, [{"role": "user", "content": "other"}, ANSWER], "chosen", TRAINING)
    with pytest.raises(BadField, match=r"^chosen starts with a 'user' message that is not the prompt"):
        join_conversation(PROMPT, [FIRST, ANSWER], "chosen", TRAINING)  # a turn of the prompt, but not its last
    with pytest.raises(BadField, match=r"^chosen holds the prompt and no response to it"):
        join_conversation(PROMPT, [USER], "chosen", TRAINING)


@pytest.mark.parametrize("prompt", ["q2", " q2\n", "q1", "", "\n", [USER | {"content": "q2 "}]])
def test_a_whole_conversation_is_recognized_whatever_the_white_space_of_its_prompt(prompt):
    whole = WHOLE[3:] if isinstance(prompt, list) else WHOLE
    record = {"prompt": prompt, "chosen": whole, "rejected": [*whole[:-1], ANSWER | {"content": "b"}]}
    (found,) = parse_sources(memory_source([record]), TRAINING)
    assert [turn["content"].strip() for turn in found.conversations[0]] == [turn["content"] for turn in whole]


def test_an_answer_that_equals_the_prompts_last_answer_is_kept():
    assert join_conversation([FIRST, FIRST_ANSWER], [FIRST_ANSWER], "chosen", TRAINING) == [
        FIRST,
        FIRST_ANSWER,
        FIRST_ANSWER,
    ]


def test_a_system_message_before_the_repeated_prompt_is_kept():
    whole = [SYSTEM, FIRST, FIRST_ANSWER, USER, ANSWER]
    assert join_conversation(whole[1:-1], whole, "chosen", TRAINING) == whole
    assert join_conversation([USER], [SYSTEM, USER | {"content": "q2 "}, ANSWER], "chosen", TRAINING) == [
        SYSTEM,
        USER,
        ANSWER,
    ]
    with pytest.raises(BadField, match=r"^chosen holds the prompt and no response to it"):
        join_conversation([USER], [SYSTEM, USER], "chosen", TRAINING)
    with pytest.raises(BadField, match=r"^chosen starts with a 'system' message that is not the prompt"):
        join_conversation([USER], [SYSTEM, FIRST, ANSWER], "chosen", TRAINING)
    with pytest.raises(BadField, match=r"^chosen starts with a 'system' message that is not the prompt"):
        join_conversation([{"role": "system", "content": "t"}, USER], [SYSTEM, USER, ANSWER], "chosen", TRAINING)


OTHER = ANSWER | {"content": "b"}
WITH_SYSTEM = [
    {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
    {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
    {"prompt": [SYSTEM, USER], "chosen": [ANSWER], "rejected": [OTHER]},
    {"prompt": "q2", "chosen": [USER, ANSWER], "rejected": [SYSTEM, USER, OTHER]},
    {"conversation_a": [USER, ANSWER], "conversation_b": [USER, OTHER], "winner": "model_a"},
    {"conversation_input": [USER], "chosen": {"answer": "a2"}, "reject": {"answer": "b"}},
    {
        "messages": [USER],
        "responses": [{"response": "a2"}, {"response": "b"}],
        "preference_graph": [{"chosen": {"response_id": 0}, "rejected": {"response_id": 1}}],
    },
    {"messages": [SYSTEM, USER, ANSWER], "rejected_response": "b"},
    {"messages": [USER, ANSWER], "rejected_response": "b"},
]


@pytest.mark.parametrize("record", WITH_SYSTEM, ids=lambda record: "-".join(record))
def test_a_system_prompt_is_put_first_once(record):
    (found,) = parse_sources(memory_source([record | {"system_prompt": "s"}]), TRAINING)
    assert found.conversations == ([SYSTEM, USER, ANSWER], [SYSTEM, USER, OTHER])


def test_a_system_prompt_comes_after_the_tools():
    tools = [{"name": "search"}]
    given = {"messages": [USER, ANSWER], "tools": tools, "system_prompt": "s"}
    openai = {
        "input": {"messages": [USER], "tools": tools},
        "preferred_output": [ANSWER],
        "non_preferred_output": [OTHER],
        "system_prompt": "s",
    }
    for record, labeled in ((given, False), (openai, True)):
        (found,) = parse_sources(memory_source([record]), ReadOptions(labeled=labeled))
        first, *turns = found.conversations[0]
        assert first["tools"] == tools
        assert turns == [SYSTEM, USER, ANSWER]


@pytest.mark.parametrize(
    "record", [WITH_SYSTEM[2], WITH_SYSTEM[3], WITH_SYSTEM[7]], ids=lambda record: "-".join(record)
)
def test_a_system_prompt_beside_another_system_message_is_refused(record):
    (found,) = parse_sources(memory_source([record | {"system_prompt": "t"}]), TRAINING)
    assert found.reason.startswith("system_prompt differs from the system message that the conversation starts with; ")


@pytest.mark.parametrize(
    "record", [{"text": "a b"}, {"chosen": "a2", "rejected": "b"}], ids=lambda record: "-".join(record)
)
def test_a_system_prompt_beside_strings_is_refused(record):
    (found,) = parse_sources(
        memory_source([record | {"system_prompt": "s"}]), ReadOptions(labeled="text" not in record)
    )
    assert found.reason.startswith("system_prompt is given beside strings that are joined as they are; ")


EMPTY = {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    ("prompt", "response", "strings", "whole"),
    [
        ("p", "", "joined", "p"),
        ("p", " ", "joined", "p "),
        ("p", "", "chat", [{"role": "user", "content": "p"}, EMPTY]),
        (PROMPT, "", "joined", [*PROMPT, EMPTY]),
        (PROMPT, [EMPTY], "joined", [*PROMPT, EMPTY]),
        (None, [USER, EMPTY], "joined", [USER, EMPTY]),
        ("\n\nHuman: q2\n\nAssistant:", " ", "chat", [USER, EMPTY]),
    ],
)
def test_an_empty_answer_is_accepted_for_scoring_only(prompt, response, strings, whole):
    assert join_conversation(prompt, response, "response", ReadOptions(strings=strings, labeled=False)) == whole
    with pytest.raises(BadField, match="a response needs text"):
        join_conversation(prompt, response, "response", ReadOptions(strings=strings))


@pytest.mark.parametrize(("prompt", "response"), [(None, ""), ("", ""), (None, [EMPTY]), ([], "")])
def test_an_empty_answer_to_nothing_is_refused(prompt, response):
    with pytest.raises(BadField, match=r"needs text|expected a string or a list"):
        join_conversation(prompt, response, "response", SCORING)


def test_text_parts_are_joined_as_they_are():
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b", "image_url": None}, {"text": "c"}]
    assert messages([{"role": "user", "content": parts}], "prompt") == [{"role": "user", "content": "a bc"}]


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "image_url", "image_url": {"url": "u"}}, "is of the type 'image_url'; only text is scored"),
        ({"type": "input_audio", "text": None}, "is of the type 'input_audio'; only text is scored"),
        ({"type": "text"}, "is {'type': 'text'}; expected a text part"),
        ({"image": "u"}, "is {'image': 'u'}; expected a text part"),
        ("text", "is 'text'; expected a text part"),
    ],
)
def test_other_parts_are_refused_by_name(part, reason):
    record = {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}, part]}],
        "chosen": "a",
        "rejected": "b",
    }
    (found,) = parse_sources(memory_source([record]), TRAINING)
    assert found.reason.startswith(f"message[0].content[1] of prompt {reason}")
