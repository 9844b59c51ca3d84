"""Duplicates among comparisons, and their overlap with other data, from a compact signature of each comparison."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Sized
from typing import NamedTuple

import numpy as np

from rmjax.core.progress import progress_bar
from rmjax.data.curation.similarity import HASHES, group, sketch
from rmjax.data.records.conversations import join_strings
from rmjax.data.schema import Comparison, Conversation, Message

# What is kept of a comparison, 288 bytes. `prompt` and `response` are identities of all their words (see `sketch`).
SIGNATURE = np.dtype(
    [
        ("conversations", np.uint64),  # hash of the conversations, in any order
        ("labels", np.uint64),  # hash of which response is better, and of the attributes
        ("prompt", np.uint64),
        ("response", np.uint64),
        ("prompt_sketch", np.uint8, HASHES),
        ("response_sketch", np.uint8, HASHES),
    ]
)
_NOT_PROMPT = ("system", "developer", "tools")  # roles; the same question is given with other instructions
_CHUNK = 256  # comparisons whose texts are compared at a time


def split_prompt(comparison: Comparison) -> tuple[list[str], list[str]]:
    r"""Returns the texts of the prompt and those of all responses.

    The prompt of messages, and of HH-RLHF transcripts, is what all responses have in common at the start, without
    system messages; with one response, all but the last message. That of strings is the longest field of the record
    with which all of them begin; else what is known as the prompt, or what several strings have in common.

    >>> pair = ("\n\nHuman: Hi\n\nAssistant: Hello", "\n\nHuman: Hi\n\nAssistant: No")
    >>> split_prompt(Comparison(pair, True, (), None, "a:1", {}))
    (['Hi'], ['Hello', 'No'])
    """
    whole = [_as_messages(conversation) for conversation in comparison.conversations]
    texts = [conversation for conversation in whole if isinstance(conversation, str)]
    if len(texts) == len(whole):
        start = _prompt_length(comparison, texts)
        return [texts[0][:start]], [text[start:] for text in texts]
    turns = [[{"role": "", "content": one}] if isinstance(one, str) else one for one in whole]
    shared = min(map(len, turns)) - 1
    shared = next((i for i in range(shared) if any(other[i] != turns[0][i] for other in turns[1:])), shared)
    prompt = [message for message in turns[0][:shared] if message["role"] not in _NOT_PROMPT]
    return list(map(_content, prompt)), [_content(message) for other in turns for message in other[shared:]]


def response_texts(comparison: Comparison) -> tuple[str, list[str]]:
    """Returns the text of the prompt, and one text for each response."""
    prompt, responses = split_prompt(comparison)
    if len(responses) != len(comparison.conversations):  # responses of several messages each
        last = [c if isinstance(c, str) else str(c[-1].get("content") or "") for c in comparison.conversations]
        return "\n\n".join(prompt), last
    return "\n\n".join(prompt), responses


def _as_messages(conversation: Conversation) -> Conversation:
    return join_strings(None, conversation, chat=True) if isinstance(conversation, str) else conversation


def _content(message: Message) -> str:
    calls = message.get("tool_calls")
    return str(message.get("content") or "") + (json.dumps(calls, sort_keys=True, default=str) if calls else "")


def _prompt_length(comparison: Comparison, texts: list[str]) -> int:
    """Returns the length of the prompt, in characters, at the start of all texts."""
    fields = [value for value in comparison.record.values() if isinstance(value, str) and value.strip()]
    opening = [value for value in fields if all(len(text) > len(value) and text.startswith(value) for text in texts)]
    if opening or len(texts) == 1:
        return max(map(len, opening), default=comparison.start)
    common = texts[0][: common_prefix(min(texts), max(texts))]
    cut = 0 if common[-1:].isspace() or not common else len(common.rsplit(None, 1)[-1])  # a word of the responses
    return len(common) - cut


def common_prefix(first: str, second: str) -> int:
    """Returns the number of characters that two texts have in common at their start."""
    differences = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differences, min(len(first), len(second)))


def _hashes(comparison: Comparison) -> tuple[int, int]:
    """Returns the hash of the conversations, in any order, and that of their labels."""
    keys = [_digest(json.dumps(c, sort_keys=True, default=str).encode()) for c in comparison.conversations]
    labels: list[bytes] = []
    if comparison.labels is not None:
        rows = comparison.labels if len(comparison.labels) == len(keys) else [comparison.labels]
        labels += [key + row.tobytes() for key, row in zip(keys, rows, strict=False)]
    for edge in comparison.edges:
        pair = [keys[edge.winner], keys[edge.loser]]
        labels.append(b"".join(sorted(pair) if edge.target == 0.5 else pair) + b"%f" % edge.target)
    conversations, label = (int.from_bytes(_digest(b"".join(sorted(parts)))) for parts in (keys, labels))
    return conversations, label


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def signatures(comparisons: Iterable[Comparison], *, similar: bool = True, progress: str = "") -> np.ndarray:
    """Returns the signature of each comparison, `SIGNATURE` [n]; those of parts of the data can be concatenated.

    Args:
      comparisons: may be an iterator; a few are held at a time.
      similar: False hashes the conversations and labels only, and leaves the rest 0.
      progress: text of a progress bar; empty: none.
    """
    parts, rest = [np.zeros(0, SIGNATURE)], iter(comparisons)
    total = len(comparisons) if isinstance(comparisons, Sized) else None
    with progress_bar(total, progress, "comparison", disable=not progress) as bar:
        while chunk := list(itertools.islice(rest, _CHUNK)):
            part = np.zeros(len(chunk), SIGNATURE)
            part["conversations"], part["labels"] = np.array(list(map(_hashes, chunk)), np.uint64).T
            if similar:
                prompts, responses = zip(*map(split_prompt, chunk), strict=True)
                part["prompt"], part["prompt_sketch"] = sketch(prompts)
                part["response"], part["response_sketch"] = sketch(responses)
            parts.append(part)
            bar.update(len(chunk))
    return np.concatenate(parts)


def same_conversations(signatures: np.ndarray) -> np.ndarray:
    """Returns the first comparison with the conversations of each one, int64 [n]."""
    return _first(signatures["conversations"])


def same_prompt(signatures: np.ndarray) -> np.ndarray:
    """Returns the first comparison whose prompt has the words of each one's, int64 [n]; its own without a prompt."""
    return np.where(signatures["prompt"] == 0, np.arange(len(signatures)), _first(signatures["prompt"]))


def similar_prompt(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the first comparison in the group of each one's prompt, int64 [n]; see `similarity.group`."""
    return group(signatures["prompt"], signatures["prompt_sketch"], threshold)


def near_duplicates(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the first comparison of which each one is a near duplicate, int64 [n].

    Near duplicates have prompts of one group, or none, and responses of one group; see `similarity.group`.
    """
    prompts = np.where(signatures["prompt"] == 0, -1, similar_prompt(signatures, threshold))
    responses = group(signatures["response"], signatures["response_sketch"], threshold)
    return _first((prompts + 1) * len(signatures) + responses[same_conversations(signatures)])


class Matches(NamedTuple):
    """The first of other comparisons that each comparison matches, int64 [n]; -1: none.

    Attributes:
      conversations: it has the same conversations.
      prompt: its prompt has the same words.
      similar_prompt: its prompt is in the same group; see `similarity.group`.
    """

    conversations: np.ndarray
    prompt: np.ndarray
    similar_prompt: np.ndarray


def match(signatures: np.ndarray, others: np.ndarray, threshold: float) -> Matches:
    """Returns which of other comparisons each comparison matches, given the signatures of both."""
    n, both = len(signatures), np.concatenate([signatures, others])
    labels = np.where(both["prompt"] == 0, -1, similar_prompt(both, threshold))
    return Matches(
        _match(signatures["conversations"], others["conversations"]),
        _match(signatures["prompt"], others["prompt"]),
        _match(labels[:n] + 1, labels[n:] + 1),
    )


def _first(keys: np.ndarray) -> np.ndarray:
    """Returns the index of the first entry equal to each one, int64 [n]."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse]


def _match(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the index of the first of `others` equal to each key, int64 [n]; -1 if there is none, or the key is 0."""
    unique, first = np.unique(others, return_index=True)
    at = np.searchsorted(unique, keys)
    unique, first = np.append(unique, 0), np.append(first, -1)  # for keys above all
    return np.where((unique[at] == keys) & (keys != 0), first[at], -1)
