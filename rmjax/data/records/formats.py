"""The table of record formats, format detection, and the iteration over the comparisons of sources."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rmjax.core.config import check_choice
from rmjax.core.errors import InputError
from rmjax.core.text import count_of
from rmjax.data.records import preferences, process, single
from rmjax.data.records.fields import BadField, number
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.sources import BadRecord, ReadReport, Sources, find_sources
from rmjax.data.schema import Comparison, Edge, Record

Item = Comparison | BadRecord
_TIED = "all its responses are tied, so there is no preference (data.ties = half keeps ties)"
_DETECTION_RECORDS = 64  # the format is detected from the first records of a source


class Format(NamedTuple):
    """A record format."""

    name: str  # a value of `config.data.format`
    parse: Callable[[str, Record, ReadOptions], Comparison]  # raises BadField; reads labels only if `options.labeled`
    matches: Callable[[Record, Record | None, ReadOptions], bool]  # of a record without null fields, and the next one
    join: Callable[[Comparison, Comparison, ReadOptions], Comparison] | None = None  # joins two consecutive lines


def _join_chosen_rejected(chosen: Comparison, rejected: Comparison, options: ReadOptions) -> Comparison:
    conversations = chosen.conversations + rejected.conversations
    record = {"chosen": conversations[0], "rejected": conversations[1]}
    return dataclasses.replace(chosen, conversations=conversations, edges=(Edge(0, 1),), record=record)


def _join_by_label(first: Comparison, second: Comparison, options: ReadOptions) -> Comparison:
    """The sign of the first line's preference label picks the winner; as in NeMo-Aligner, zero picks the second."""
    count, index = len(first.attributes), options.preference_label
    if first.attributes != second.attributes:
        raise BadField(f"the labels of the two lines differ in length; found {count} and {len(second.attributes)}")
    if not 0 <= index < count:
        raise BadField(
            f"label has no entry data.preference_label = {index}; it has {count_of(count, 'entry', 'entries')}"
        )
    labels = np.concatenate([comparison.labels for comparison in (first, second) if comparison.labels is not None])
    preference = float(labels[0, index])
    if np.isnan(preference):
        raise BadField(f"label[{index}] is missing; expected the preference (data.preference_label)")
    labels[:, index] = np.nan
    conversations, edges = first.conversations + second.conversations, (preferences.signed_edge(preference),)
    record = {"responses": [first.record["text"], second.record["text"]], "label": first.record["label"]}
    return dataclasses.replace(first, conversations=conversations, edges=edges, labels=labels, record=record)


def _has_only_preference(record: Record, following: Record | None, options: ReadOptions) -> bool:
    """Whether two lines have the same label, and all its entries but the preference are missing."""
    label = record.get("label")
    if "text" not in record or following is None or label != following.get("label"):
        return False
    if not isinstance(label, list) or len(label) < 2:
        return False
    return [i for i, value in enumerate(label) if value != options.missing_label] == [options.preference_label]


_TABLE = (  # in the order of detection: the first format that matches is taken
    Format("pairs", preferences.parse_pair, lambda r, *_: "chosen" in r or "rejected" in r),
    Format("preference_strength", preferences.parse_preference_strength,
           lambda r, *_: "preference_strength" in r or {"response_1", "response_2"} <= r.keys()),
    Format("nemo_preference", single.parse_nemo_label, _has_only_preference, _join_by_label),
    Format("nemo_regression", single.parse_nemo_label, lambda r, *_: {"text", "label"} <= r.keys()),
    Format("nemo_binary", single.parse_text,
           lambda r, following, options: "text" in r and options.labeled and "text" in (following or {}),
           _join_chosen_rejected),
    Format("text", single.parse_text, lambda r, *_: "text" in r),
    Format("kwise", preferences.parse_kwise, lambda r, *_: "responses" in r),
    Format("completions", preferences.parse_completions,
           lambda r, *_: isinstance(r.get("completions"), list) and any(isinstance(x, dict) for x in r["completions"])),
    Format("process", process.parse_process, lambda r, *_: "completions" in r),
    Format("prm800k", process.parse_prm800k, lambda r, *_: "question" in r and isinstance(r.get("label"), dict)),
    Format("math_shepherd", process.parse_math_shepherd, lambda r, *_: process.STEP_END in str(r.get("input"))),
    Format("regression", single.parse_regression, lambda r, *_: "response" in r),
    Format("messages", single.parse_messages, lambda r, *_: "messages" in r),
)  # fmt: skip
FORMATS = {format.name: format for format in _TABLE}


def detect_format(head: Sequence[tuple[str, Record | BadRecord]], options: ReadOptions) -> Format:
    """Returns the format of the first record of `head`, of (place, record), that has a known one.

    Null fields do not count: Parquet gives all fields to each record. Raises InputError if no format matches.

    >>> detect_format([("a.jsonl:1", {"prompt": "p", "chosen": "a", "rejected": "b"})], ReadOptions()).name
    'pairs'
    """
    records = [(where, record) for where, record in head if isinstance(record, dict)]
    if not records:
        return _TABLE[0]  # not used, as every record is a BadRecord
    for (_, record), following in zip(records, [*(record for _, record in records[1:]), None], strict=True):
        given = {key: value for key, value in record.items() if value is not None}
        for format in _TABLE:
            if format.matches(given, following, options):
                return format
    where, record = records[0]
    raise InputError(
        f"{where}: the record has the keys {sorted(map(str, record))}; expected those of "
        f"{', '.join(FORMATS)}: set config.data.format, or rename keys (data.columns)"
    )


def iterate_comparisons(sources: Sources, options: ReadOptions, report: ReadReport | None = None) -> Iterator[Item]:
    """Yields the comparisons of sources (see `find_sources`) in input order, and a BadRecord for each unusable record.

    Updates `report` while reading. Raises InputError if a source cannot be read, or an option is wrong.
    """
    report = ReadReport() if report is None else report
    check_choice("data.format", options.format, ("auto", *FORMATS))
    check_choice("data.strings", options.strings, ("joined", "chat"))
    check_choice("data.ties", options.ties, ("drop", "half"))
    check_choice("data.step_labels", options.step_labels, ("auto", "binary", "ternary"))
    for source in find_sources(sources):
        records = source.records(report, options.columns)
        head = list(itertools.islice(records, _DETECTION_RECORDS))
        format = detect_format(head, options) if options.format == "auto" else FORMATS[options.format]
        if format.name not in report.format.split(", "):
            report.format = ", ".join(filter(None, (report.format, format.name)))
        parsed = (_parse(format, options, source.name, *entry) for entry in itertools.chain(head, records))
        yield from _join_lines(format, parsed, options)


def _parse(format: Format, options: ReadOptions, source: str, where: str, record: Record | BadRecord) -> Item:
    if isinstance(record, BadRecord):
        return record
    try:
        comparison = format.parse(where, record, options)
        if comparison.edges and record.get("weight") is not None:
            weight = number(record["weight"], "weight")
            if weight <= 0:
                raise BadField(f"weight is {weight}; expected more than 0: remove the record, or raise the weight")
            edges = tuple(dataclasses.replace(edge, weight=weight * edge.weight) for edge in comparison.edges)
            comparison = dataclasses.replace(comparison, edges=edges)
    except BadField as error:
        return BadRecord(where, str(error), record, error.kind)
    if options.labeled and len(comparison.conversations) > 1 and not comparison.edges:
        return BadRecord(where, _TIED, record, _TIED, tied=True)
    subset = "" if record.get("subset") is None else str(record["subset"])
    return dataclasses.replace(comparison, subset="/".join(filter(None, (source, subset))))


def _join_lines(format: Format, parsed: Iterator[Item], options: ReadOptions) -> Iterator[Item]:
    """Yields the comparisons of consecutive lines, prompt||A and prompt||B, if the format has such."""
    if format.join is None or not options.labeled:
        yield from parsed
        return
    for first in parsed:
        second = next(parsed, None)
        if second is None:
            reason = "the last line has no partner"
            yield BadRecord(first.where, f"{reason}; NeMo-Aligner's format pairs consecutive lines", {}, reason)
        elif isinstance(first, BadRecord) or isinstance(second, BadRecord):
            yield first if isinstance(first, BadRecord) else second
        else:
            try:
                if first.conversations == second.conversations:
                    raise BadField("the first text equals the second; such a pair has no preference: remove it")
                yield format.join(first, second, options)
            except BadField as error:
                yield BadRecord(first.where, str(error), first.record, error.kind)
