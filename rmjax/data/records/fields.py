"""Checks of a record's fields; each raises BadField naming the field."""

import re
from typing import Any

import numpy as np

from rmjax.core.text import count_of
from rmjax.data.records.roles import with_role
from rmjax.data.schema import Message

_MAX_NUMBER = float(np.finfo(np.float32).max)  # labels and margins are stored as float32


class BadField(Exception):
    """An unusable field of a record; `kind` is the reason without the value found, by which bad records are counted."""

    def __init__(self, reason: str, kind: str = ""):
        super().__init__(reason)
        self.kind = re.sub(r"\[[0-9]+\]", "[i]", kind or reason.split(";")[0])


def unexpected(value: Any, name: str, expected: str) -> BadField:
    """Returns the error for a field with an unexpected value."""
    return BadField(f"{name} is {value!r:.60}; expected {expected}", f"{name} is not {expected}")


def number(value: Any, name: str) -> float:
    """Returns a finite number, also from text (a CSV cell)."""
    try:
        if isinstance(value, str):
            value = float(value)
        if not isinstance(value, bool) and isinstance(value, int | float) and abs(float(value)) <= _MAX_NUMBER:
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise unexpected(value, name, "a finite number")


def entries(value: Any, name: str, count: int, per: str) -> list[Any]:
    """Returns a list with one entry per response or step (`per`)."""
    if not isinstance(value, list):
        raise unexpected(value, name, f"a list with one entry per {per}")
    if len(value) != count:
        reason = f"{name} has {count_of(len(value), 'entry', 'entries')}; expected {count}, one per {per}"
        raise BadField(reason, f"{name} has another number of entries than there are {per}s")
    return value


def texts(value: Any, name: str) -> list[str]:
    """Returns a list of at least one string, none empty."""
    if not isinstance(value, list) or not value:
        raise unexpected(value, name, "a list of strings")
    return [text(entry, f"{name}[{i}]") for i, entry in enumerate(value)]


def text(value: Any, name: str) -> str:
    """Returns a string with more than white space."""
    if not isinstance(value, str) or not value.strip():
        raise unexpected(value, name, "a string that is not empty")
    return value


def messages(value: Any, name: str) -> list[Message]:
    """Returns a list of at least one chat message; a message with tool calls may have no content.

    Roles get the names that chat templates know (`roles.normalize_role`); `from` and `value` become role and content.

    Null keys are removed, also in tool calls: Parquet and `datasets` give every message the keys of all messages. The
    content's text parts (`[{"type": "text", "text": …}]`) are joined as they are.
    """
    if not isinstance(value, list) or not value:
        raise unexpected(value, name, "a string or a list of messages")
    found: list[Message] = []
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance((message := with_role(message)).get("role"), str):
            raise unexpected(message, f"message[{i}] of {name}", "an object with role and content, or from and value")
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list):
            content = "".join(
                _part_text(part, f"message[{i}].content[{k}] of {name}") for k, part in enumerate(content)
            )
            message = message | {"content": content}
        if not isinstance(content, str) and not (content is None and isinstance(calls, list) and calls):
            raise unexpected(content, f"message[{i}].content of {name}", "a string")
        found.append({key: without_null(part) for key, part in message.items() if part is not None or key == "content"})
    return found


def _part_text(part: Any, name: str) -> str:
    """Returns the text of a part of a message's content; raises BadField naming a part of another kind."""
    kind = (part.get("type") or "text") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind != "text":
        raise BadField(f"{name} is of the type {kind!r:.60}; only text is scored: remove the part, or the record")
    if kind is None or not isinstance(part.get("text"), str):
        raise unexpected(part, name, 'a text part, {"type": "text", "text": …}')
    return part["text"]


def without_null(value: Any) -> Any:
    """Returns a nested value without the null entries of its objects."""
    if isinstance(value, list):
        return [without_null(entry) for entry in value]
    if isinstance(value, dict):
        return {key: without_null(entry) for key, entry in value.items() if entry is not None}
    return value
