"""Formats of single responses: values of A attributes (regression), and text or messages without labels."""

import dataclasses

import numpy as np

from rmjax.data.records.conversations import get_prompt, join_conversation
from rmjax.data.records.fields import BadField, messages, number, text, unexpected
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Comparison, Record

HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
NEMO = ("quality", "toxicity", "humor", "creativity", *HELPSTEER)  # the nine labels of NeMo-Aligner's recipes, in order


def parse_text(where: str, record: Record, options: ReadOptions) -> Comparison:
    """`text`, tokenized as it is."""
    return Comparison((text(record.get("text"), "text"),), False, (), None, where, record)


def parse_messages(where: str, record: Record, options: ReadOptions) -> Comparison:
    """`messages`: one conversation."""
    return Comparison((messages(record.get("messages"), "messages"),), True, (), None, where, record)


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
    if not isinstance(given, dict) or not given:
        raise unexpected(given, "labels", "an object {attribute: value}, or HelpSteer's columns")
    names = tuple(given) if record.get("labels") is None else tuple(sorted(given))
    values = [np.nan if given[name] is None else number(given[name], f"labels.{name}") for name in names]
    return _with_labels(comparison, names, values, options)


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
