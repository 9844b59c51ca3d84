"""Conversations in other layouts: JSON text, one message without a list, one string per turn."""

import json
from typing import Any

from rmjax.data.records.content import decode
from rmjax.data.records.fields import BadField, messages
from rmjax.data.schema import Message

# Published files add language and token counts.
_KEPT = ("role", "content", "reasoning_content", "reasoning", "thinking", "tool_calls", "tool_call_id", "name")


def chat_messages(value: Any, name: str) -> list[Message]:
    """Returns the messages of a conversation, or of one message, without other keys; both may be JSON text.

    Raises BadField, with the field's `name`, if it is something else.

    >>> chat_messages([{"from": "human", "value": "Hi", "num_tokens": 1}], "conversations")
    [{'role': 'user', 'content': 'Hi'}]
    """
    found = messages(as_response(decode(value)), name)
    return _check_unicode([{key: turn[key] for key in _KEPT if key in turn} for turn in found], name)


def as_response(value: Any) -> Any:
    """Returns the list of a single message; another response as it is."""
    return [value] if isinstance(value, dict) else value


def turn_texts(value: Any, name: str) -> list[str] | None:
    """Returns the texts of a list of strings, or of its JSON text; None if it is something else.

    A missing text, null in Kaggle's Chatbot Arena files, is an empty one.

    >>> turn_texts('["Hi", null]', "response_a"), turn_texts("Hi", "response_a")
    (['Hi', ''], None)
    """
    value = decode(value)
    if not isinstance(value, list) or not value or not all(text is None or isinstance(text, str) for text in value):
        return None
    return _check_unicode([text or "" for text in value], name)


def as_dialog(prompts: list[str], answers: list[str], name: str) -> list[Message]:
    """Returns user and assistant messages in turn; raises BadField, with the answers' `name`, if one has no partner."""
    if len(prompts) != len(answers):
        raise BadField(
            f"{name} has {len(answers)} turns and its prompt {len(prompts)}; expected as many answers as prompts",
            f"{name} has another number of turns than its prompt",
        )
    pairs = zip(prompts, answers, strict=True)
    return [turn for prompt, answer in pairs for turn in (user(prompt), assistant(answer))]


def user(text: str) -> Message:
    """Returns a user's message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """Returns an assistant's message."""
    return {"role": "assistant", "content": text}


def _check_unicode(value: list[Any], name: str) -> list[Any]:
    """Returns a list of texts or messages; raises BadField if one is not valid text, as a JSON text can be."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadField(f"{name} holds half a surrogate pair, which is not valid text; remove the record") from error
    return value
