"""Tools that a conversation offers to the model, which the chat template renders.

They are the first message of a conversation, with the role `tools` and the list in its key `tools`, so that they stay
with it from the record or the request to the template.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from rmjax.core.json_text import DuplicateKey, parse
from rmjax.data.records.fields import BadField, unexpected, without_null
from rmjax.data.schema import Comparison, Message

_ROLE = "tools"


def with_tools(comparison: Comparison, value: Any) -> Comparison:
    """Returns the comparison with the tools of its record's field `tools` in each conversation.

    Raises BadField if the tools are something else than `tools_message` reads, or a conversation is a string.
    """
    if not (first := tools_message(value)):
        return comparison
    if any(isinstance(conversation, str) for conversation in comparison.conversations):
        raise BadField(
            "tools is given, and the conversation is a string, which no chat template renders; set data.strings = "
            "chat or give messages, or drop the field (data.columns = 'tools=_')"
        )
    conversations = tuple([*first, *conversation] for conversation in comparison.conversations)
    return dataclasses.replace(comparison, conversations=conversations)


def tools_message(value: Any) -> list[Message]:
    """Returns the message with the tools: a list of objects, such as JSON schemas of functions, or its JSON text.

    No message for null, and for an empty list or text. Raises BadField for anything else.

    >>> tools_message('[{"name": "search"}]')
    [{'role': 'tools', 'content': None, 'tools': [{'name': 'search'}]}]
    >>> tools_message("[]")
    []
    """
    tools = value
    if isinstance(value, str) and value.strip():
        try:
            tools = parse(value)
        except DuplicateKey as error:
            raise BadField(f"tools: {error}") from error
        except (ValueError, RecursionError):
            tools = value  # refused below
    if tools is None or tools in ("", [], {}) or (isinstance(tools, str) and not tools.strip()):
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and tool for tool in tools):
        raise unexpected(value, "tools", "a list of objects that describe a tool each, or its JSON text")
    return [{"role": _ROLE, "content": None, "tools": without_null(tools)}]


def split_tools(conversation: Sequence[Message]) -> tuple[list[Message], list[dict[str, Any]]]:
    """Returns the messages without the one of the tools, and the tools; none by default."""
    if conversation and conversation[0]["role"] == _ROLE and "tools" in conversation[0]:
        return list(conversation[1:]), conversation[0]["tools"]
    return list(conversation), []
