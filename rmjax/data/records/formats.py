"""The field's formats: which record is which, and from sources to comparisons."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rmjax.core.config import check_choice
from rmjax.core.errors import InputError
from rmjax.data.records import parsers, process
from rmjax.data.records.conversations import BadField, number
from rmjax.data.records.parsers import ReadOptions
from rmjax.data.records.sources import BadRecord, ReadReport, find_sources, peek, read_records
from rmjax.data.schema import Comparison, Edge

Record = dict[str, Any]
Parse = Callable[[str, Record, ReadOptions], Comparison]

# What each format's record is, by its parser; the two of consecutive lines are parsed line by line and then joined.
_PARSERS: dict[str, Parse] = {
    "pairs": parsers.pairs,
    "nemo_binary": parsers.plain_text,
    "nemo_regression": parsers.nemo_label,
    "nemo_preference": parsers.nemo_label,
    "regression": parsers.regression,
    "preference_strength": parsers.preference_strength,
    "kwise": parsers.kwise,
    "completions": parsers.completions,
    "process": process.process,
    "prm800k": process.prm800k,
    "math_shepherd": process.math_shepherd,
    "text": parsers.plain_text,
    "messages": parsers.plain_messages,
}
FORMATS = tuple(_PARSERS)
_TIED = "all its responses are tied, which says nothing (data.ties = half keeps ties)"
_LOOKED_AT = 64  # records from which the format is told
_CONSECUTIVE = ("nemo_binary", "nemo_preference")


def detect_format(record: Record, following: Record | None, options: ReadOptions) -> str:
    """Returns the format of a record by its fields; the next one tells NeMo-Aligner's line pairs from single lines."""
    has = lambda key: record.get(key) is not None  # Parquet gives every record the fields of all
    if has("chosen") or has("rejected"):
        return "pairs"
    if has("preference_strength") or (has("response_1") and has("response_2")):
        return "preference_strength"
    if has("text"):
        if has("label"):
            same = following is not None and record["label"] == following.get("label")
            return "nemo_preference" if same and _only_preference(record["label"], options) else "nemo_regression"
        return "nemo_binary" if options.labelled and following is not None and "text" in following else "text"
    if has("responses"):
        return "kwise"
    if has("completions"):
        if isinstance(record["completions"], list) and any(isinstance(entry, dict) for entry in record["completions"]):
            return "completions"
        return "process"
    if has("question") and isinstance(record.get("label"), dict):
        return "prm800k"
    if has("input") and "ки" in str(record["input"]):
        return "math_shepherd"
    if has("response"):
        return "regression"
    if has("messages"):
        return "messages"
    raise InputError(
        f"the record has the keys {sorted(map(str, record))}; expected those of "
        f"{', '.join(FORMATS)}: set config.data.format, or rename keys (data.columns)"
    )


def _only_preference(label: Any, options: ReadOptions) -> bool:
    """Whether a NeMo-Aligner label holds the preference alone."""
    if not isinstance(label, list) or len(label) < 2:
        return False
    return [i for i, value in enumerate(label) if value != options.missing_label] == [options.preference_label]


def iterate_comparisons(
    sources: str | Sequence[str], options: ReadOptions, report: ReadReport | None = None
) -> Iterator[Comparison | BadRecord]:
    """Yields the comparisons of sources in input order, and in their places the records that are none.

    Args:
      sources: paths, globs and hub names; see `sources.find_sources`.
      report: filled in while reading.

    Raises:
      InputError: a source cannot be read, or an option is wrong.
    """
    report = ReadReport() if report is None else report
    check_choice("data.format", options.format, ("auto", *FORMATS))
    check_choice("data.strings", options.strings, ("joined", "chat"))
    check_choice("data.ties", options.ties, ("drop", "half"))
    check_choice("data.step_labels", options.step_labels, ("auto", "binary", "ternary"))
    for source in find_sources(sources):
        head, records = peek(read_records(source, report, options.columns), _LOOKED_AT)
        format = options.format if options.format != "auto" else _recognised(head, options)
        if format not in report.format.split(", "):
            report.format = ", ".join(filter(None, (report.format, format)))
        parsed = (_parse(format, options, source.name, where, record) for where, record in records)
        yield from _consecutive(parsed, format, options) if format in _CONSECUTIVE and options.labelled else parsed


def _recognised(head: Sequence[tuple[str, Record | BadRecord]], options: ReadOptions) -> str:
    """Returns the format of the first record that has one, of those that can be read."""
    readable = [(where, record) for where, record in head if isinstance(record, dict)]
    fault = None
    for (where, record), (_, following) in itertools.pairwise([*readable, ("", None)]):
        try:
            return detect_format(record, following, options)
        except InputError as error:
            fault = fault or InputError(f"{where}: {error}")
    if fault:
        raise fault
    return "pairs"  # nothing can be read, which each record says for itself


def _parse(format: str, options: ReadOptions, name: str, where: str, record: Record | BadRecord) -> Any:
    if isinstance(record, BadRecord):
        return record
    try:
        found = _PARSERS[format](where, record, options)
        if found.edges and record.get("weight") is not None:
            found = _weighted(found, number(record["weight"], "weight"))
        if options.labelled and len(found.conversations) > 1 and not found.edges:
            return BadRecord(where, _TIED, record, _TIED, tied=True)
    except BadField as fault:
        return BadRecord(where, str(fault), record, fault.kind)
    subset = "" if record.get("subset") is None else str(record["subset"])
    return dataclasses.replace(found, subset="/".join(filter(None, (name, subset))))


def _weighted(comparison: Comparison, weight: float) -> Comparison:
    if weight <= 0:
        raise BadField(f"weight is {weight}; expected more than 0: remove the record, or give it weight")
    edges = tuple(dataclasses.replace(edge, weight=weight * edge.weight) for edge in comparison.edges)
    return dataclasses.replace(comparison, edges=edges)


def _consecutive(
    parsed: Iterator[Comparison | BadRecord], format: str, options: ReadOptions
) -> Iterator[Comparison | BadRecord]:
    """Joins NeMo-Aligner's consecutive lines, prompt||A and prompt||B, into comparisons of two."""
    join = _good_then_bad if format == "nemo_binary" else _signed
    for first in parsed:
        second = next(parsed, None)
        if second is None:
            where = first.where
            reason = "the last line has no partner; NeMo-Aligner's format pairs consecutive lines"
            yield BadRecord(where, reason, {}, "the last line has no partner")
            return
        bad = next((half for half in (first, second) if isinstance(half, BadRecord)), None)
        if bad is not None:
            yield bad
        elif first.conversations == second.conversations:
            reason = "the first text equals the second; such a pair says nothing: remove it"
            yield BadRecord(first.where, reason, first.record, "the first text equals the second")
        else:
            yield join(first, second, options)


def _good_then_bad(good: Comparison, bad: Comparison, options: ReadOptions) -> Comparison:
    record = {"chosen": good.conversations[0], "rejected": bad.conversations[0]}
    conversations = good.conversations + bad.conversations
    return dataclasses.replace(good, conversations=conversations, edges=(Edge(0, 1),), record=record)


def _signed(first: Comparison, second: Comparison, options: ReadOptions) -> Comparison | BadRecord:
    """NeMo-Aligner's regression with preference: the sign of the first line's preference label picks the winner.

    As there, zero counts for the second response.
    """
    if first.attributes != second.attributes:
        reason = f"its label has {len(first.attributes)} entries, the next line's {len(second.attributes)}"
        return BadRecord(first.where, reason, first.record, "the two lines' labels differ in length")
    at = options.preference_label
    if not 0 <= at < len(first.attributes):
        reason = f"label has {len(first.attributes)} entries; data.preference_label is {at}"
        return BadRecord(first.where, reason, first.record, "label has no entry data.preference_label")
    labels = np.concatenate([first.labels, second.labels])
    value = float(labels[0, at])
    if np.isnan(value):
        reason = f"label[{at}] is missing; expected the preference (data.preference_label)"
        return BadRecord(first.where, reason, first.record, "the preference is missing")
    labels[:, at] = np.nan
    record = {"responses": [first.record["text"], second.record["text"]], "label": first.record["label"]}
    conversations, edges = first.conversations + second.conversations, (parsers.signed_edge(value),)
    return dataclasses.replace(first, conversations=conversations, edges=edges, labels=labels, record=record)


def read_comparisons(
    sources: str | Sequence[str], options: ReadOptions, on_bad_record: str = "error", *, group_prompts: bool = False
) -> tuple[list[Comparison], ReadReport]:
    """Reads all comparisons. A comparison whose responses are all tied is no bad record: it is left out, and counted.

    Args:
      group_prompts: make the single responses to one prompt into one comparison, which computes the prompt once.

    Raises:
      InputError: a record cannot be used and `on_bad_record` is `error`; names the file, the line and the field.
    """
    check_choice("data.on_bad_record", on_bad_record, ("error", "skip"))
    report = ReadReport()
    comparisons = []
    for source in [sources] if isinstance(sources, str) else sources:
        found: list[Comparison | BadRecord] = []
        for item in iterate_comparisons(source, options, report):
            if isinstance(item, Comparison):
                found.append(item)
            elif on_bad_record == "skip" or item.tied:
                report.skipped[item.kind] += 1
            else:
                raise InputError(f"{item.where}: {item.reason} (or set data.on_bad_record to skip)")
        comparisons += normalize_step_labels(found, options)
    return (group_by_prompt(comparisons) if group_prompts else comparisons), report


def normalize_step_labels(items: list[Comparison | BadRecord], options: ReadOptions) -> list[Comparison | BadRecord]:
    """Puts the labels of one source's steps on 0 to 1 where `options.step_labels` is `auto`.

    One record cannot tell: 0 is wrong beside 1 alone, and neutral (0.5) beside -1 anywhere in the source.
    """
    judged = lambda item: isinstance(item, Comparison) and bool(item.steps) and item.labels is not None
    if options.step_labels != "auto" or not any(judged(item) and (item.labels == -1).any() for item in items):
        return items
    return [dataclasses.replace(item, labels=(item.labels + 1) / 2) if judged(item) else item for item in items]


def group_by_prompt(comparisons: list[Comparison]) -> list[Comparison]:
    """Joins comparisons of one response that have the same prompt and attributes, in order of first appearance."""
    groups: dict[Any, list[Comparison]] = {}
    for i, item in enumerate(comparisons):
        alone = len(item.conversations) > 1 or item.steps or item.labels is None or "prompt" not in item.record
        prompt = i if alone else json.dumps(item.record["prompt"], sort_keys=True)
        groups.setdefault((alone, prompt, item.attributes, item.add_eos, item.subset), []).append(item)
    return [
        dataclasses.replace(
            group[0],
            conversations=tuple(item.conversations[0] for item in group),
            labels=np.concatenate([item.labels for item in group]),
            record={"prompt": group[0].record["prompt"], "responses": [item.record.get("response") for item in group]},
        )
        if len(group) > 1
        else group[0]
        for group in groups.values()
    ]
