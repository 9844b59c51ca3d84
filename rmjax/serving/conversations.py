"""Arguments of the client: conversations, and prompts with responses, to whole conversations."""

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

Conversation = str | Sequence[Mapping[str, Any]]
Conversations = Iterable[Conversation]


def join(conversations: Conversations, prompts: Conversations | Conversation | None) -> list[Conversation]:
    """Returns whole conversations, all strings or all lists of messages.

    Args:
      conversations: those, or responses if there are prompts.
      prompts: one per response, or a single one, a string or a list of messages, for all.

    Raises:
      TypeError, ValueError: the arguments are not such lists, or differ in length.

    >>> join([" 4", " 5"], "2 + 2 =")
    ['2 + 2 = 4', '2 + 2 = 5']
    >>> join(["Hi"], [{"role": "user", "content": "Greet me."}])
    [[{'role': 'user', 'content': 'Greet me.'}, {'role': 'assistant', 'content': 'Hi'}]]
    """
    samples = _entries(conversations, "conversations")
    if prompts is not None:
        if isinstance(prompts, str) or _is_messages(prompts):
            given: list[Conversation] = [prompts] * len(samples)
        else:
            given = _entries(prompts, "prompts")
        if len(given) != len(samples):
            raise ValueError(
                f"prompts has {len(given)} entries, conversations has {len(samples)}; expected one prompt per "
                "conversation, or a single prompt for all"
            )
        samples = [_join_pair(i, *pair) for i, pair in enumerate(zip(given, samples, strict=True))]
    kinds = [isinstance(sample, str) for sample in samples]
    if len(set(kinds)) > 1:
        raise TypeError(
            f"conversation {kinds.index(True)} is a string, conversation {kinds.index(False)} a list of messages; "
            "expected one kind: score them in two calls"
        )
    return samples


def _entries(values: Any, name: str) -> list[Conversation]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        found = f"{name} is a {type(values).__name__}, {reprlib.repr(values)}"
        raise TypeError(f"{found}; expected a list of strings or of lists of messages: pass a list, [{name[:-1]}]")
    entries = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
    if _is_messages(entries):
        raise TypeError(f"{name} is one list of messages; expected a list of such lists: pass [messages]")
    for i, entry in enumerate(entries):
        if not isinstance(entry, str) and not _is_messages(entry):
            raise TypeError(f"{name}[{i}] is {reprlib.repr(entry)}; expected a string or a list of chat messages")
    return entries


def _is_messages(value: Any) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(entry, Mapping) for entry in value)


def _join_pair(i: int, prompt: Conversation, response: Conversation) -> Conversation:
    if isinstance(prompt, str):
        if not isinstance(response, str):
            raise TypeError(f"prompt {i} is a string, its response a list of messages; expected both of one kind")
        return prompt + response
    return [*prompt, *([{"role": "assistant", "content": response}] if isinstance(response, str) else response)]
