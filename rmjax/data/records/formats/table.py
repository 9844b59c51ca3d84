"""The table of record formats, format detection, and the iteration over the comparisons of sources."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rmjax.core.config_checks import check_choice
from rmjax.core.errors import InputError
from rmjax.core.text import count_of
from rmjax.data.records.conversations import with_system
from rmjax.data.records.fields import BadField, number
from rmjax.data.records.formats import message_trees, preferences, process, published, rankings, single, trainers
from rmjax.data.records.formats.examples import closest_formats, example_line
from rmjax.data.records.formats.user_format import UserFormat, is_user_format
from rmjax.data.records.leftovers import Survey, check_fields, explain_failure
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.sources import BadRecord, Entry, ReadReport, Sources, find_sources
from rmjax.data.records.tools import with_tools
from rmjax.data.records.tracking import TrackedRecord
from rmjax.data.schema import Comparison, Edge, Record

Item = Comparison | BadRecord
_TIED = "all its responses are tied, so there is no preference (data.ties = half keeps ties)"
_EQUAL = "all its responses are equal, so there is no preference"
DETECTION_RECORDS = 64  # the format is detected from the first records of a source


class Format(NamedTuple):
    """A record format."""

    name: str  # a value of `config.data.format`
    parse: Callable[[str, Record, ReadOptions], Comparison]  # raises BadField; reads labels only if `options.labeled`
    matches: Callable[[Record, Record | None, ReadOptions], bool]  # of a record without null fields, and the next one
    join: Callable[[Comparison, Comparison, ReadOptions], Comparison] | None = None  # joins two consecutive lines
    expand: Callable[[Iterator[Entry], ReadOptions], Iterator[Entry]] | None = None  # returns the records to parse
    beside: tuple[str, ...] = ()  # fields that the published form has beside the conversation: not lost if not read


class _Context(NamedTuple):
    """What is needed to parse the records of a source."""

    options: ReadOptions
    source: str  # its name
    survey: Survey
    report: ReadReport


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


def _has_side(record: Record) -> bool:
    return "chosen" in record or "rejected" in record


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)


_TABLE = (  # in the order of detection: the first format that matches is taken
    Format("ultrainteract", message_trees.parse_ultrainteract, lambda r, *_: {"trajectory", "chosen"} <= r.keys()),
    Format("rmb", rankings.parse_rmb, lambda r, *_: "conversation_input" in r),
    Format("preference_graph", rankings.parse_preference_graph,
           lambda r, *_: "preference_graph" in r or ("messages" in r and _holds_objects(r.get("responses")))),
    Format("ms_swift", trainers.parse_ms_swift,
           lambda r, *_: "messages" in r and ("rejected_response" in r or "rejected_messages" in r)),
    Format("sharegpt", trainers.parse_sharegpt,
           lambda r, *_: (_has_side(r) and ("conversations" in r
                                            or ("messages" in r and isinstance(r.get("chosen"), dict))))),
    Format("alpaca", trainers.parse_alpaca,
           lambda r, *_: ("instruction" in r and "prompt" not in r
                          and (_has_side(r) or isinstance(r.get("output"), list)))),
    Format("openai_preference", trainers.parse_openai,
           lambda r, *_: "preferred_output" in r or "non_preferred_output" in r),
    Format("pairs", preferences.parse_pair, lambda r, *_: _has_side(r)),
    Format("arena", published.parse_arena,
           lambda r, *_: any(names <= r.keys() for names in published.ARENA_FIELDS), beside=("full_conversation",)),
    Format("ppe", rankings.parse_ppe,
           lambda r, *_: {"response_1", "response_2"} <= r.keys() and ({"scores", "score_1", "response_3"} & r.keys()),
           beside=("question",)),
    Format("preference_strength", preferences.parse_preference_strength,
           lambda r, *_: "preference_strength" in r or {"response_1", "response_2"} <= r.keys()),
    Format("pku_saferlhf", published.parse_pku_saferlhf, lambda r, *_: {"response_0", "response_1"} <= r.keys()),
    Format("shp", published.parse_shp, lambda r, *_: {"human_ref_A", "human_ref_B"} <= r.keys()),
    Format("webgpt", published.parse_webgpt, lambda r, *_: {"answer_0", "answer_1"} <= r.keys(),
           beside=("quotes_0", "quotes_1", "tokens_0", "tokens_1")),
    Format("helpsteer3", published.parse_helpsteer3, lambda r, *_: {"response1", "response2"} <= r.keys()),
    Format("judgebench", published.parse_judgebench, lambda r, *_: {"response_A", "response_B"} <= r.keys()),
    Format("nectar", rankings.parse_nectar, lambda r, *_: _holds_objects(r.get("answers"))),
    Format("oasst", preferences.parse_kwise, message_trees.is_oasst, expand=message_trees.expand_oasst),
    Format("score", single.parse_score, lambda r, *_: single.has_score(r)),
    Format("nemo_preference", single.parse_nemo_label, _has_only_preference, _join_by_label),
    Format("nemo_regression", single.parse_nemo_label, lambda r, *_: {"text", "label"} <= r.keys()),
    Format("nemo_binary", single.parse_text,
           lambda r, following, options: "text" in r and options.labeled and "text" in (following or {}),
           _join_chosen_rejected),
    Format("text", single.parse_text, lambda r, *_: "text" in r),
    Format("kwise", preferences.parse_kwise, lambda r, *_: "responses" in r),
    Format("completions", preferences.parse_completions, lambda r, *_: _holds_objects(r.get("completions"))),
    Format("process", process.parse_process, lambda r, *_: "completions" in r),
    Format("processbench", process.parse_processbench, lambda r, *_: {"problem", "steps"} <= r.keys()),
    Format("prmbench", process.parse_prmbench, lambda r, *_: "modified_process" in r,
           beside=("original_question", "original_process", "question")),
    Format("prm800k", process.parse_prm800k, lambda r, *_: "question" in r and isinstance(r.get("label"), dict)),
    Format("math_shepherd", process.parse_math_shepherd, lambda r, *_: process.STEP_END in str(r.get("input"))),
    Format("regression", single.parse_regression, lambda r, *_: "response" in r),
    Format("messages", single.parse_messages, lambda r, *_: any(name in r for name in single.MESSAGES)),
)  # fmt: skip
FORMATS = {format.name: format for format in _TABLE}
_UNLABELED = ("text", "messages")  # taken only if no record of the head is of another format


def detect_format(head: Sequence[tuple[str, Record | BadRecord]], options: ReadOptions) -> Format:
    """Returns the format of the first record of `head`, of (place, record), that has a known one; best with labels.

    Null fields do not count: Parquet gives all fields to each record. Raises InputError if no format matches.

    >>> detect_format([("a.jsonl:1", {"prompt": "p", "chosen": "a", "rejected": "b"})], ReadOptions()).name
    'pairs'
    """
    records = [(where, record) for where, record in head if isinstance(record, dict)]
    if not records:
        return _TABLE[0]  # not used, as every record is a BadRecord
    given = [{key: value for key, value in dict(record).items() if value is not None} for _, record in records]
    pairs = list(zip(given, [*(record for _, record in records[1:]), None], strict=True))
    for last in (False, True):  # whether formats that may be others without their labels are tried
        for record, following in pairs:
            for format in _TABLE:
                if (format.name in _UNLABELED) == last and format.matches(record, following, options):
                    return format
    where, record = records[0]
    fields = ", ".join(map(str, record)) or "(none)"
    closest = "; ".join(f"{name}, {example_line(name)}" for name in closest_formats(map(str, record), FORMATS))
    raise InputError(
        f"{where}: no format has the fields {fields}; rename fields (data.columns), or give data.format a Python file "
        f"that converts the records (docs/data.md); the closest formats are {closest}",
        page="docs/troubleshooting.md#the-format-of-the-data-is-not-recognized",
    )


def parse_sources(sources: Sources, options: ReadOptions, report: ReadReport | None = None) -> Iterator[Item]:
    """Yields the comparisons of sources (see `find_sources`) in input order, and a BadRecord for each unusable record.

    Updates `report` while reading. Raises InputError if a source cannot be read, or an option is wrong.
    """
    report = ReadReport() if report is None else report
    given = find_format(options.format)
    check_choice("data.strings", options.strings, ("joined", "chat"))
    check_choice("data.ties", options.ties, ("drop", "half"))
    check_choice("data.step_labels", options.step_labels, ("auto", "binary", "ternary"))
    for source in find_sources(sources):
        records = source.records(report, options.columns)
        head = list(itertools.islice(records, DETECTION_RECORDS))
        format = given or detect_format(head, options)
        if format.name not in report.format.split(", "):
            report.format = ", ".join(filter(None, (report.format, format.name)))
        survey = Survey.of(record for _, record in head if isinstance(record, dict))
        context = _Context(options, source.name, survey, report)
        found: Iterator[Entry] = itertools.chain(head, records)
        if isinstance(format, UserFormat):
            yield from (_parse_converted(format, context, *entry) for entry in found)
            continue
        found = format.expand(found, options) if format.expand else found
        parsed = (_parse(format, context, *entry) for entry in found)
        yield from _join_lines(format, parsed, options)


def find_format(name: str) -> Format | UserFormat | None:
    """Returns the format that `config.data.format` names, in `FORMATS` or in a user's Python file; None for `auto`.

    Raises InputError if there is none.
    """
    if is_user_format(name):
        return UserFormat(name)
    if name not in ("auto", *FORMATS):
        raise InputError(
            f"config.data.format is {name!r}; choose one of auto, {', '.join(FORMATS)}, or a Python file that defines "
            "parse(record) (docs/data.md)"
        )
    return FORMATS.get(name)


def _parse_converted(user: UserFormat, context: _Context, where: str, record: Record | BadRecord) -> Item:
    """Returns the comparison of what a user's file makes of a record, which is also the record of its output.

    The file decides what is part of the conversation: fields that it does not read are reported only.
    """
    if isinstance(record, BadRecord):
        return record
    tracked = record if isinstance(record, TrackedRecord) else TrackedRecord(record)
    inner = context._replace(survey=Survey(), report=ReadReport())
    try:
        found = user.convert(tracked, labeled=context.options.labeled)
        if isinstance(found, Comparison):
            comparison = dataclasses.replace(found, where=where)
            item = _parse(Format(user.name, lambda *_: comparison, lambda *_: False), inner, where, {})
        else:
            item = _parse(detect_format([(where, found)], context.options), inner, where, found)
    except BadField as error:
        return BadRecord(where, str(error), tracked.renamed, error.kind)
    except InputError as error:  # of `detect_format`
        kind = f"parse() of {user.name} returned a record of no format"
        return BadRecord(where, f"{kind}: {str(error).removeprefix(f'{where}: ')}", tracked.renamed, kind)
    if isinstance(item, Comparison):
        has_prompt = not inner.report.no_prompt
        check_fields(tracked, item, context.survey, context.report, allowed=tracked.row, has_prompt=has_prompt)
    return dataclasses.replace(item, record=tracked.renamed)


def _parse(format: Format, context: _Context, where: str, record: Record | BadRecord) -> Item:
    if isinstance(record, BadRecord):
        return record
    tracked = record if isinstance(record, TrackedRecord) else TrackedRecord(record)
    options, record = context.options, tracked.renamed
    try:
        comparison = _parse_conversations(format, where, tracked, options)
        if "system_prompt" not in tracked.read:
            comparison = with_system(comparison, tracked.get("system_prompt"))
        comparison = with_tools(comparison, tracked.get("tools"))
        subset = comparison.subset if tracked.get("subset") is None else str(tracked["subset"])
        if comparison.edges and tracked.get("weight") is not None:
            weight = number(tracked["weight"], "weight")
            if weight <= 0:
                raise BadField(f"weight is {weight}; expected more than 0: remove the record, or raise the weight")
            edges = tuple(dataclasses.replace(edge, weight=weight * edge.weight) for edge in comparison.edges)
            comparison = dataclasses.replace(comparison, edges=edges)
        check_fields(tracked, comparison, context.survey, context.report, allowed=format.beside)
    except BadField as error:
        return BadRecord(where, str(error), record, error.kind)
    has_labels = comparison.edges or comparison.labels is not None
    if options.labeled and len(comparison.conversations) > 1 and not has_labels:
        first, *others = comparison.conversations
        reason = _EQUAL if all(conversation == first for conversation in others) else _TIED
        return BadRecord(where, reason, record, reason, tied=True)
    subset = "/".join(filter(None, (context.source, subset)))
    # A parser may have made a record of its own for the output.
    kept = record if comparison.record is tracked else comparison.record
    return dataclasses.replace(comparison, subset=subset, record=kept)


def _parse_conversations(format: Format, where: str, record: TrackedRecord, options: ReadOptions) -> Comparison:
    try:
        return format.parse(where, record, options)
    except BadField as error:
        raise explain_failure(record, error) from error


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
