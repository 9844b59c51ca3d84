"""Formats of single responses: values of A attributes (regression), and text or messages without labels."""

import dataclasses
from typing import Any

import numpy as np

from rmjax.data.records.conversations import get_prompt, join_conversation
from rmjax.data.records.fields import BadField, messages, number, text, unexpected
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Comparison, Record

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
SCORES = ("score", "reward", "rating", "label")  # fields with a single number; its name is that of the attribute
MESSAGES = ("messages", "conversations", "conversation")  # names of a whole conversation
_RESPONSES = ("response", "completion")  # the latter is TRL's name
NEMO = ("quality", "toxicity", "humor", "creativity", *HELPSTEER)  # the nine labels of NeMo-Aligner's recipes, in order


def parse_text(where: str, record: Record, options: ReadOptions) -> Comparison:
    """`text`, tokenized as it is."""
    return Comparison((text(record.get("text"), "text"),), False, (), None, where, record)


def parse_messages(where: str, record: Record, options: ReadOptions) -> Comparison:
    """`messages` (ShareGPT: `conversations`): one conversation."""
    name = next((name for name in MESSAGES if record.get(name) is not None), MESSAGES[0])
    return Comparison((messages(record.get(name), name),), True, (), None, where, record)


def parse_regression(where: str, record: Record, options: ReadOptions) -> Comparison:
    """`prompt`, `response`, and `labels` {attribute: value}, or HelpSteer's columns; a missing value is null."""
    conversation = join_conversation(get_prompt(record, options), record.get("response"), "response", options)
    start = len(conversation) - len(record["response"]) if isinstance(conversation, str) else 0
    comparison = Comparison((conversation,), True, (), None, where, record, start=start)
    if not options.labeled:
        return comparison
    given = record.get("labels")
    if given is None:
        given = {name: record[name] for name in HELPSTEER if name in record}
        if not given:
            raise _no_label(record)
    if not isinstance(given, dict) or not given:
        raise unexpected(given, "labels", "an object {attribute: value}, or HelpSteer's columns")
    names = tuple(given) if record.get("labels") is None else tuple(sorted(given))
    values = [np.nan if given[name] is None else number(given[name], f"labels.{name}") for name in names]
    return _with_labels(comparison, names, values, options)


def _no_label(record: Record) -> BadField:
    """Returns the error of a record without labels: of a score that is no number, or that there is none."""
    for name in SCORES:
        if record.get(name) is not None:
            return unexpected(record[name], name, "a finite number, true or false")
    return BadField(
        f"no label; expected one number, true or false in {', '.join(SCORES)}, HelpSteer's columns, or labels "
        "{attribute: value}: rename a label of another name (data.columns = 'OLD=label')",
        "no label",
    )


def parse_score(where: str, record: Record, options: ReadOptions) -> Comparison:
    """One number, in one of `SCORES`, for a `response` (TRL: `completion`) to `prompt`, for `messages`, or for `text`.

    A `text` is tokenized as it is. True and false are 1 and 0 (TRL's unpaired preferences).
    """
    if any(record.get(name) is not None for name in MESSAGES):
        comparison = parse_messages(where, record, options)
    elif record.get("text") is not None:
        comparison = parse_text(where, record, options)
    else:
        name = next((name for name in _RESPONSES if record.get(name) is not None), "response")
        response = record.get(name)
        conversation = join_conversation(get_prompt(record, options), response, name, options)
        start = len(conversation) - len(response) if isinstance(conversation, str) and isinstance(response, str) else 0
        comparison = Comparison((conversation,), True, (), None, where, record, start=start)
    if not options.labeled:
        return comparison
    given = [name for name in SCORES if record.get(name) is not None]
    if len(given) != 1:
        found = f"the scores {' and '.join(given)}" if given else "no score"
        raise BadField(
            f"the record has {found}; expected one number in {', '.join(SCORES)}: rename the others (data.columns = "
            "'OLD=_'), or give several as labels {attribute: value}",
            f"the record has {found}",
        )
    value = record[given[0]]
    values = [float(value) if isinstance(value, bool) else number(value, given[0])]
    return _with_labels(comparison, (given[0],), values, options)


def has_score(record: Record) -> bool:
    """Whether a record has a number as `parse_score` reads it, and not the labels of another format."""
    if "labels" in record or any(name in record for name in HELPSTEER):
        return False
    if not any(name in record for name in (*MESSAGES, "text", *_RESPONSES)):
        return False
    return any(_is_number(record[name]) for name in SCORES if name in record)


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, bool) or number(value, "") is not None
    except BadField:
        return False


def parse_nemo_label(where: str, record: Record, options: ReadOptions) -> Comparison:
    """NeMo-Aligner's regression: `text`, and `label`, a list of numbers of which -100 means missing."""
    comparison = parse_text(where, record, options)
    if not options.labeled:
        return comparison
    label = record.get("label")
    if not isinstance(label, list) or not label:
        raise unexpected(label, "label", "a list of numbers")
    values = [number(value, f"label[{i}]") for i, value in enumerate(label)]
    names = NEMO if len(label) == len(NEMO) else tuple(f"label_{i}" for i in range(len(label)))
    return _with_labels(comparison, names, values, options)


def _with_labels(comparison: Comparison, names: tuple, values: list[float], options: ReadOptions) -> Comparison:
    """Returns the comparison with labels float32 [1, A], NaN where missing."""
    labels = np.array([values], np.float32)
    labels[labels == np.float32(options.missing_label)] = np.nan
    if np.isnan(labels).all():
        raise BadField(f"every label is missing; expected one other than null and {options.missing_label:g}")
    return dataclasses.replace(comparison, labels=labels, attributes=names)
