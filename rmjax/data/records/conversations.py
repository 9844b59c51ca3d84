"""Join a record's prompt and response into one conversation."""

import dataclasses
import re
from typing import Any

from rmjax.data.records.fields import BadField, messages, text
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.roles import normalize_role
from rmjax.data.records.tools import split_tools
from rmjax.data.records.tracking import TrackedRecord
from rmjax.data.schema import Comparison, Conversation, Message, Record

_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")  # opens a turn of an HH-RLHF transcript


def get_prompt(record: Record, options: ReadOptions, *names: str) -> Any:
    """Returns a record's `prompt`, or the first of the fields `names` that it has, or None.

    A `system_prompt` is added by `with_system`. Raises BadField if a system message would be lost.
    """
    prompt = next((record[name] for name in ("prompt", *names) if record.get(name) is not None), None)
    if isinstance(record, TrackedRecord):
        record.without_prompt = prompt is None
    # One word is accepted: in data such as SummEval, `system` is the identifier of the system that generated the text.
    if len(str(dict.get(record, "system") or "").split()) > 1:  # looked at, and not read
        raise BadField(
            "system holds a text; if it is a system message, rename it (data.columns = "
            "'system=system_prompt'), else leave it out (data.columns = 'system=_')"
        )
    return prompt


def with_system(comparison: Comparison, value: Any) -> Comparison:
    """Returns the comparison with the system message of its record's `system_prompt` first in each conversation.

    A conversation that starts with it already is kept. Raises BadField if one starts with another system message, or is
    a string.
    """
    if not value:
        return comparison
    system = {"role": "system", "content": text(value, "system_prompt")}
    conversations: list[Conversation] = []
    for conversation in comparison.conversations:
        if isinstance(conversation, str):
            raise BadField(
                "system_prompt is given beside strings that are joined as they are; set data.strings = chat, or put "
                "it into the prompt and leave the field out (data.columns = 'system_prompt=_')"
            )
        turns, tools = split_tools(conversation)
        has_system = turns[0]["role"] == "system"
        if has_system and _stripped(turns[0]) != _stripped(system):
            raise BadField(
                "system_prompt differs from the system message that the conversation starts with; keep one of them "
                "(data.columns = 'system_prompt=_' leaves the field out)"
            )
        first = conversation[: len(conversation) - len(turns)] if tools else []
        conversations.append(conversation if has_system else [*first, system, *turns])
    return dataclasses.replace(comparison, conversations=tuple(conversations))


def join_conversation(prompt: Any, response: Any, name: str, options: ReadOptions) -> Conversation:
    """Returns the whole conversation of a response: the prompt, if there is one, then the response.

    Messages that start with the prompt already (UltraFeedback-binarized), or with its last turns, do not repeat it;
    white space around a turn's text does not count. A string prompt beside messages is a user message, a string
    response to messages the assistant's. An empty response to a prompt is accepted for scoring only.

    Raises BadField, with the response's field `name`, if prompt or response has a wrong type, or the response is empty.
    """
    if isinstance(response, str):
        return _join_string(prompt, response, name, options)
    answer = messages(response, name)
    last = answer[-1]
    is_empty = not str(last.get("content") or "").strip() and not last.get("tool_calls")
    if is_empty and (options.labeled or not (prompt or answer[:-1])):
        raise BadField(f"{name} ends in an empty message; a response needs text")
    if prompt is None:
        return answer
    if isinstance(prompt, str):
        users = [str(turn.get("content") or "").strip() for turn in answer if turn["role"] == "user"]
        is_blank = not prompt.strip() and answer[0]["role"] != "assistant"
        has_prompt = is_blank or prompt.strip() in users  # the first turn, or of a dialog the last
        turns, repeated, has_response = [] if has_prompt else _user(prompt), 0, last["role"] != "user"
    else:
        turns = messages(prompt, "prompt")
        if answer[0]["role"] == "system" != turns[0]["role"] and _starts_with(answer[1:], turns):
            turns = [answer[0], *turns]  # the whole conversation, with a system message that the prompt lacks
        repeated = _common_turns(turns, answer)
        has_prompt, has_response = repeated > 0, len(answer) > repeated
    if has_prompt and not has_response:
        raise BadField(f"{name} holds the prompt and no response to it; a response needs text")
    if not has_prompt and answer[0]["role"] != "assistant":
        raise BadField(
            f"{name} starts with a {answer[0]['role']!r} message that is not the prompt; give a response that starts "
            "with the assistant, or, if this is the whole conversation, leave the prompt out (data.columns = "
            "'prompt=_')"
        )
    return [*turns, *answer[repeated:]]


def _common_turns(prompt: list[Message], answer: list[Message]) -> int:
    """Returns how many messages at the start of the answer repeat the prompt: all of it, or turns from a user's on."""
    counts = [len(prompt)] if answer[0]["role"] == "assistant" else range(len(prompt), 0, -1)
    return next((count for count in counts if _starts_with(answer[:count], prompt[-count:])), 0)


def _starts_with(answer: list[Message], turns: list[Message]) -> bool:
    same = lambda turn, other: turn | {"content": _stripped(turn)} == other | {"content": _stripped(other)}
    return len(answer) >= len(turns) and all(map(same, answer, turns))


def _stripped(turn: Message) -> str:
    return (turn.get("content") or "").strip()


def _join_string(prompt: Any, response: str, name: str, options: ReadOptions) -> Conversation:
    if not response.strip() and (options.labeled or not prompt):
        raise BadField(f"{name} is empty; a response needs text")
    if isinstance(prompt, list):
        return [*messages(prompt, "prompt"), {"role": "assistant", "content": response}]
    if prompt is not None and not isinstance(prompt, str):
        raise BadField(f"prompt is a {type(prompt).__name__} but {name} a string; make both strings or messages")
    whole = join_strings(prompt, response, options.strings == "chat")
    is_answer = lambda turn: turn["role"] == "assistant" and (turn["content"] or not options.labeled)
    if isinstance(whole, list) and not is_answer(whole[-1]):
        raise BadField(f"{name} ends in an empty turn, or in the human's; a response needs text")
    return whole


def join_strings(prompt: str | None, response: str, chat: bool) -> Conversation:
    r"""Returns prompt and response as one string; if `chat`, as messages, an HH-RLHF transcript as one per turn.

    >>> join_strings("Hi", " there", chat=False)
    'Hi there'
    >>> join_strings(None, "\n\nHuman: Hi\n\nAssistant: Hello", chat=True)
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    whole = (prompt or "") + response
    if not chat:
        return whole
    if (opening := _TURN.match(whole)) and opening[1] == "Human":
        turns = _TURN.split(whole)[1:]
        pairs = zip(turns[::2], turns[1::2], strict=True)
        return [{"role": normalize_role(speaker), "content": content.strip()} for speaker, content in pairs]
    return whole if prompt is None else [*_user(prompt), {"role": "assistant", "content": response}]


def _user(prompt: str) -> list[Message]:
    return [{"role": "user", "content": prompt}]
