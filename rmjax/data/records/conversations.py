"""How a record's prompt and response become one conversation, and the checks of a record's fields."""

import re
from typing import Any

import numpy as np

from rmjax.data.schema import Message

# HH-RLHF's transcripts: turns opened by these marks.
_TURN = re.compile(r"\n\n(Human|Assistant):[ ]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_LARGEST = float(np.finfo(np.float32).max)  # what labels and margins are kept in


class BadField(Exception):
    """A record's fault, told without its place; `kind` is the reason without what was found (see `BadRecord`)."""

    def __init__(self, reason: str, kind: str = ""):
        super().__init__(reason)
        self.kind = kind or reason.split(";")[0]


def number(value: Any, name: str) -> float:
    """Returns a finite number; a CSV cell may hold it as text. Raises BadField naming the field."""
    try:
        if isinstance(value, str):
            value = float(value)
        if not isinstance(value, bool) and isinstance(value, int | float) and abs(float(value)) <= _LARGEST:
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise BadField(f"{name} is {value!r:.60}; expected a finite number", f"{name} is no finite number")


def numbers(value: Any, name: str, count: int) -> list[float]:
    """Returns a list of `count` finite numbers. Raises BadField naming the field."""
    if not isinstance(value, list):
        raise BadField(f"{name} is {value!r:.60}; expected a list of {count} numbers", f"{name} is no list")
    if len(value) != count:
        raise BadField(
            f"{name} has {len(value)} entries; expected {count}, one a response",
            f"{name} has another number of entries than there are responses",
        )
    return [number(entry, f"{name}[{i}]") for i, entry in enumerate(value)]


def texts(value: Any, name: str) -> list[str]:
    """Returns a list of strings, none empty, at least one. Raises BadField naming the field."""
    if not isinstance(value, list) or not value:
        raise BadField(f"{name} is {value!r:.60}; expected a list of strings", f"{name} is no list of strings")
    for i, entry in enumerate(value):
        text(entry, f"{name}[{i}]")
    return value


def text(value: Any, name: str) -> str:
    """Returns a string that is not empty. Raises BadField naming the field."""
    if not isinstance(value, str) or not value.strip():
        raise BadField(
            f"{name} is {value!r:.60}; expected a string that is not empty",
            f"{re.sub(r'[0-9]+', 'i', name)} is empty or no string",
        )
    return value


def messages(value: Any, name: str) -> list[Message]:
    """Returns a list of chat messages, at least one; one that calls tools needs no content. Raises BadField.

    Keys that are null go, those of tool calls too: Parquet and `datasets` give every message the keys of all.
    """
    if not isinstance(value, list) or not value:
        raise BadField(
            f"{name} is {value!r:.60}; expected a string or a list of messages",
            f"{name} is no string and no list of messages",
        )
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadField(
                f"{name} holds the message {message!r:.60}; expected an object with role and content",
                f"{name} holds a message without role",
            )
        content, calls = message.get("content"), message.get("tool_calls")
        if not isinstance(content, str) and not (content is None and isinstance(calls, list) and calls):
            raise BadField(
                f"{name} holds a {message['role']!r:.60} message whose content is no string",
                f"{name} holds a message whose content is no string",
            )
    return [
        {key: _without_null(part) for key, part in message.items() if part is not None or key == "content"}
        for message in value
    ]


def _without_null(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_null(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _without_null(entry) for key, entry in value.items() if entry is not None}
    return value


def conversation(prompt: Any, response: Any, name: str, chat: bool) -> str | list[Message]:
    """Returns the whole conversation of a response: the prompt, if there is one, and the response.

    Messages that already hold the prompt (UltraFeedback-binarized's form) are the whole conversation: the prompt is
    not said twice. A string prompt beside messages is a user's message.

    Args:
      prompt: a string, messages, or None.
      response: a string or messages.
      name: of the response's field, for messages.
      chat: make strings into messages: prompt and response the user's and the assistant's, a HH-RLHF transcript its
        turns.

    Raises:
      BadField: one of them is of a wrong type, or the response is empty.
    """
    if isinstance(response, str):
        return _strings(prompt, response, name, chat)
    answer = messages(response, name)
    last = answer[-1]
    if not str(last.get("content") or "").strip() and not last.get("tool_calls"):
        raise BadField(f"{name} ends in an empty message; a response needs text")
    if prompt is None:
        return answer
    if isinstance(prompt, str):
        questions = [message["content"] for message in answer if message["role"] == "user"]
        if questions[:1] == [prompt]:
            if last["role"] == "user":
                raise BadField(f"{name} holds the prompt and no response to it; a response needs text")
            return answer
        asked = _user(prompt)
    else:
        asked = messages(prompt, "prompt")
        if answer == asked:
            raise BadField(f"{name} holds the prompt and no response to it; a response needs text")
        if answer[: len(asked)] == asked:
            return answer
    if answer[0]["role"] != "assistant":
        raise BadField(
            f"{name} starts with a {answer[0]['role']!r} message that is not the prompt; give a whole "
            "conversation without prompt, or a response that starts with the assistant",
            f"{name} starts with a message that is neither the prompt nor the assistant's",
        )
    return [*asked, *answer]


def _strings(prompt: Any, response: str, name: str, chat: bool) -> str | list[Message]:
    if not response.strip():
        raise BadField(f"{name} is empty; a response needs text")
    if isinstance(prompt, list) and chat:
        return [*messages(prompt, "prompt"), {"role": "assistant", "content": response}]
    if prompt is not None and not isinstance(prompt, str):
        raise BadField(f"prompt is a {type(prompt).__name__} but {name} a string; make both strings or messages")
    whole = join(prompt, response, chat)
    if isinstance(whole, list) and (whole[-1]["role"] != "assistant" or not whole[-1]["content"]):
        raise BadField(f"{name} ends in an empty turn, or in the human's; a response needs text")
    return whole


def join(prompt: str | None, response: str, chat: bool) -> str | list[Message]:
    """Returns prompt and response as one text, or as messages where `chat` asks for them (see `conversation`)."""
    whole = (prompt or "") + response
    if not chat:
        return whole
    if turns := transcript(whole):
        return turns
    return whole if prompt is None else [*_user(prompt), {"role": "assistant", "content": response}]


def _user(prompt: str) -> list[Message]:
    return [{"role": "user", "content": prompt}]


def transcript(whole: str) -> list[Message]:
    """Returns the turns of a HH-RLHF transcript, each opened by a mark after an empty line; [] if the text is none."""
    opening = _TURN.match(whole)
    if not opening or opening[1] != "Human":
        return []
    parts = _TURN.split(whole)[1:]
    return [{"role": _ROLES[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]
