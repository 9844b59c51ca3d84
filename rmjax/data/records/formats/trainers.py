"""Formats of preference pairs of other trainers: LLaMA-Factory (alpaca and ShareGPT), ms-swift, OpenAI's fine-tuning.

They are messages whatever `options.strings` is, since these trainers render each turn by the chat template.
"""

from typing import Any

from rmjax.data.records.content import is_dialog
from rmjax.data.records.fields import BadField, text, unexpected
from rmjax.data.records.formats.examples import missing
from rmjax.data.records.formats.preferences import compare_sides, join_responses
from rmjax.data.records.formats.turns import as_dialog, chat_messages, user
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.tools import with_tools
from rmjax.data.schema import Comparison, Message, Record

_BEFORE_RESPONSE = ("user", "tool")  # roles of the last turn of a prompt


def parse_alpaca(where: str, record: Record, options: ReadOptions) -> Comparison:
    """LLaMA-Factory's alpaca ranking: `instruction`, `input`, `history`, `system`, and `chosen` and `rejected`.

    As in LLaMA-Factory, `history` is a list of [user, assistant] strings, and instruction and input, joined by a
    newline, are the last user message. Instead of chosen and rejected, `output` may be the list of both.
    """
    parts = {name: record.get(name) for name in ("instruction", "input")}
    for name, part in parts.items():
        if part is not None and not isinstance(part, str):
            raise unexpected(part, name, "a string")
    question = "\n".join(filter(None, parts.values()))
    if not question.strip():
        raise missing("instruction", "alpaca")
    prompt = _with_system(record, [*_history(record.get("history")), user(question)])
    output = record.get("output")
    if record.get("chosen") is None and output is not None:
        if not isinstance(output, list) or len(output) != 2:
            raise unexpected(output, "output", "a list of the chosen and the rejected response")
        return _compare(where, record, options, prompt, "alpaca", {"output[0]": output[0], "output[1]": output[1]})
    return _compare(where, record, options, prompt, "alpaca", {key: record.get(key) for key in ("chosen", "rejected")})


def _history(value: Any) -> list[Message]:
    pairs = [] if value is None else value
    if not is_dialog(pairs):
        raise unexpected(value, "history", "a list of [user, assistant] strings")
    return as_dialog([pair[0] for pair in pairs], [pair[1] for pair in pairs], "history")


def parse_sharegpt(where: str, record: Record, options: ReadOptions) -> Comparison:
    """LLaMA-Factory's ShareGPT ranking: `conversations` (or `messages`), `system`, and a turn `chosen` and `rejected`.

    A turn has `from` and `value`, or role and content.
    """
    name = "conversations" if record.get("conversations") is not None else "messages"
    if record.get(name) is None:
        raise missing("conversations", "sharegpt")
    prompt = _with_system(record, chat_messages(record.get(name), name))
    if prompt[-1]["role"] not in _BEFORE_RESPONSE:
        raise BadField(f"{name} ends in a turn of {prompt[-1]['role']!r}; expected the user's, before the response")
    sides = {key: record.get(key) for key in ("chosen", "rejected")}
    return _compare(where, record, options, prompt, "sharegpt", sides)


def parse_ms_swift(where: str, record: Record, options: ReadOptions) -> Comparison:
    """ms-swift: `messages`, which end in the chosen response, and `rejected_response` or `rejected_messages`.

    The rejected response, a string or a list of several, replaces all that follows the last message of user or tool.
    """
    if record.get("messages") is None:
        raise missing("messages", "ms_swift")
    chosen = _with_system(record, chat_messages(record.get("messages"), "messages"))
    start = max((i for i, turn in enumerate(chosen, 1) if turn["role"] in _BEFORE_RESPONSE), default=0)
    if start == len(chosen):
        raise BadField("messages ends in the user's turn; expected the chosen response")
    if (whole := record.get("rejected_messages")) is not None:
        rejected = _with_system(record, chat_messages(whole, "rejected_messages"))
        return compare_sides(where, record, options, [chosen], [rejected])
    if (response := record.get("rejected_response")) is None:
        raise missing("rejected_response", "ms_swift")
    several = join_responses(chosen[:start], response, "rejected_response", options)
    return compare_sides(where, record, options, [chosen], several)


def parse_openai(where: str, record: Record, options: ReadOptions) -> Comparison:
    """OpenAI's preference fine-tuning: `input` {messages, tools}, `preferred_output` and `non_preferred_output`."""
    given = record.get("input")
    if not isinstance(given, dict) or given.get("messages") is None:
        raise missing("input", "openai_preference")
    prompt = chat_messages(given["messages"], "input.messages")
    sides = {key: record.get(key) for key in ("preferred_output", "non_preferred_output")}
    return with_tools(_compare(where, record, options, prompt, "openai_preference", sides), given.get("tools"))


def _compare(
    where: str, record: Record, options: ReadOptions, prompt: list[Message], format: str, sides: dict[str, Any]
) -> Comparison:
    """Returns the comparison of the two `sides`, {field: responses}, of which the first is the chosen one."""
    for name, value in sides.items():
        if value is None:
            raise missing(name, format)
    chosen, rejected = (join_responses(prompt, value, name, options) for name, value in sides.items())
    return compare_sides(where, record, options, chosen, rejected)


def _with_system(record: Record, turns: list[Message]) -> list[Message]:
    """Returns the turns after the system message of `system`, which these trainers read, or of `system_prompt`."""
    if turns[0]["role"] == "system" or not (system := record.get("system_prompt") or record.get("system")):
        return turns
    return [{"role": "system", "content": text(system, "system")}, *turns]
