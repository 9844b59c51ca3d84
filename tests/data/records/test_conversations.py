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


def test_an_answer_that_equals_the_prompts_last_answer_is_kept():
    assert join_conversation([FIRST, FIRST_ANSWER], [FIRST_ANSWER], "chosen", TRAINING) == [
        FIRST,
        FIRST_ANSWER,
        FIRST_ANSWER,
    ]


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
