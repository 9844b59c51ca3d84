"""Records of the field's formats, read as comparisons.

JSON lines are read with `json`, not with `datasets`: its readers lose the line numbers that errors must name, and force
one type on columns that hold strings here and lists of messages there.
"""

import collections
import dataclasses
import functools
import glob
import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from rmjax.core.config import check_choice
from rmjax.core.errors import InputError
from rmjax.data.schema import Comparison, Edge, Message

FORMATS = ("pairs", "nemo_binary", "text", "messages")


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used: where it stands, what is wrong with it, and what could be read of it."""

    where: str
    reason: str
    record: dict[str, Any]


@dataclasses.dataclass
class ReadReport:
    """What was read: the format taken, records, blank lines, and the number skipped by reason."""

    format: str = ""
    records: int = 0
    blank: int = 0
    skipped: collections.Counter = dataclasses.field(default_factory=collections.Counter)


class _BadField(Exception):
    """A record's fault, told without its place; `iterate` adds the place."""


def files_of(sources: str | Sequence[str]) -> list[pathlib.Path]:
    """Returns the files that paths and globs name, in order.

    Raises:
      InputError: nothing is there, or it is no JSONL file.
    """
    found: list[pathlib.Path] = []
    for source in [sources] if isinstance(sources, str) else sources:
        matches = sorted(map(pathlib.Path, glob.glob(source))) if glob.has_magic(source) else [pathlib.Path(source)]
        if not matches:
            raise InputError(f"data {source!r}: no file matches this glob")
        for path in matches:
            if not path.exists():
                raise InputError(f"data {str(path)!r}: no such file; check config.data.train and config.data.validation")
            if path.is_dir() or not path.name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
                raise InputError(f"data {str(path)!r}: expected a JSONL file (.jsonl or .jsonl.gz)")
        found += matches
    if not found:
        raise InputError("data: no source given; set a path, a glob, or 'synthetic'")
    return found


def _lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields (path:line, text) of each line."""
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                yield f"{path}:{number}", line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: truncated or damaged gzip after line {number} ({error}); copy it again") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 after line {number} ({error}); convert the file") from error


def _records(paths: Sequence[pathlib.Path], report: ReadReport) -> Iterator[tuple[str, dict[str, Any] | BadRecord]]:
    for path in paths:
        before = report.records
        for where, line in _lines(path):
            if not line.strip():
                report.blank += 1
                continue
            report.records += 1
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                yield where, BadRecord(where, f"not JSON ({error})", {})
                continue
            if isinstance(record, dict):
                yield where, record
            else:
                yield where, BadRecord(where, f"expected a JSON object, found {type(record).__name__}", {})
        if report.records == before:
            raise InputError(f"{path}: the file holds no record")


def recognise(record: dict[str, Any], following: dict[str, Any] | None, labelled: bool) -> str:
    """Returns the format of the first record; `labelled` data with `text` is NeMo-Aligner's line pairs."""
    if "chosen" in record or "rejected" in record:
        return "pairs"
    if "text" in record:
        return "nemo_binary" if labelled and following is not None and "text" in following else "text"
    if "messages" in record:
        return "messages"
    raise InputError(f"the first record has the keys {sorted(record)}; expected chosen and rejected, text, or messages: "
                     f"set config.data.format to one of {', '.join(FORMATS)} or rename the keys")  # fmt: skip


def iterate(
    sources: str | Sequence[str],
    format: str = "auto",
    *,
    strings: str = "joined",
    labelled: bool = True,
    report: ReadReport | None = None,
) -> Iterator[Comparison | BadRecord]:
    """Yields the comparisons of files in input order, and in their places the records that are none.

    Args:
      sources: paths and globs of JSONL files, plain or gzipped.
      format: `auto` or one of `FORMATS`.
      strings: `joined` takes prompt and response strings as one text, as they are; `chat` makes them a user's and an
        assistant's message.
      labelled: False reads `text` lines one by one, for scoring, where `auto` would pair them.
      report: filled in while reading.
    """
    report = ReadReport() if report is None else report
    check_choice("data.format", format, ("auto", *FORMATS))
    check_choice("data.strings", strings, ("joined", "chat"))
    records = _records(files_of(sources), report)
    head = [next(records, None) for _ in range(2)]
    records = _chain([item for item in head if item is not None], records)
    if format == "auto":
        readable = [record for _, record in filter(None, head) if isinstance(record, dict)]
        try:
            format = recognise(readable[0], readable[1] if len(readable) > 1 else None, labelled) if readable else "pairs"
        except InputError as error:
            raise InputError(f"{head[0][0]}: {error}") from error
    report.format = format
    parse = {"pairs": functools.partial(_pair, chat=strings == "chat"), "text": _text, "messages": _messages}.get(format)
    if parse is None:
        yield from _nemo_binary(records)
        return
    for where, record in records:
        yield record if isinstance(record, BadRecord) else _guarded(parse, where, record)


def _chain(first: list, rest: Iterator) -> Iterator:
    yield from first
    yield from rest


def _guarded(parse: Any, where: str, record: dict[str, Any]) -> Comparison | BadRecord:
    try:
        return parse(where, record)
    except _BadField as fault:
        return BadRecord(where, str(fault), record)


def _pair(where: str, record: dict[str, Any], chat: bool) -> Comparison:
    for key in ("chosen", "rejected"):
        if key not in record:
            raise _BadField(f"no {key!r}; a pair needs chosen and rejected")
    margin = record.get("margin", 0.0)
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) < float("inf"):
        raise _BadField(f"margin is {margin!r}; expected a finite number")
    chosen, rejected = (_conversation(record, key, chat) for key in ("chosen", "rejected"))
    if type(chosen) is not type(rejected):
        raise _BadField("chosen and rejected are of different types; both must be strings or both lists of messages")
    if chosen == rejected:
        raise _BadField("chosen equals rejected; such a pair says nothing: remove it")
    edge = Edge(0, 1, float(margin))
    return Comparison((chosen, rejected), True, (edge,), None, where, record)


def _conversation(record: dict[str, Any], key: str, chat: bool) -> str | list[Message]:
    """Returns the whole conversation of a response: the prompt, if there is one, and what stands at `key`."""
    response, prompt = record[key], record.get("prompt")
    if isinstance(response, str):
        if not response.strip():
            raise _BadField(f"{key} is empty; a response needs text")
        if prompt is not None and not isinstance(prompt, str):
            raise _BadField(f"prompt is a {type(prompt).__name__} but {key} a string; make both strings or both messages")
        if chat and prompt is not None:
            return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return (prompt or "") + response
    messages = _check_messages(response, key)
    if not _content_text(messages[-1]).strip():
        raise _BadField(f"{key} ends in an empty message; a response needs text")
    if prompt is None:
        return messages
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}, *messages]
    return [*_check_messages(prompt, "prompt"), *messages]


def _check_messages(value: Any, key: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise _BadField(f"{key} is {value!r:.60}; expected a string or a list of messages")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _BadField(f"{key} holds the message {message!r:.60}; expected an object with role and content")
        if not isinstance(message.get("content"), str):
            raise _BadField(f"{key} holds a {message['role']!r} message whose content is no string")
    return value


def _content_text(message: Message) -> str:
    return str(message["content"])


def _text(where: str, record: dict[str, Any]) -> Comparison:
    text = record.get("text")
    if not isinstance(text, str) or not text.strip():
        raise _BadField(f"text is {text!r:.60}; expected a string that is not empty")
    return Comparison((text,), False, (), None, where, record)


def _messages(where: str, record: dict[str, Any]) -> Comparison:
    if "messages" not in record:
        raise _BadField("no 'messages'")
    return Comparison((_check_messages(record["messages"], "messages"),), True, (), None, where, record)


def _nemo_binary(records: Iterator[tuple[str, dict[str, Any] | BadRecord]]) -> Iterator[Comparison | BadRecord]:
    """Yields NeMo-Aligner's consecutive lines {"text": prompt||good}, {"text": prompt||bad} as pairs."""
    for where, first in records:
        following = next(records, None)
        if following is None:
            yield BadRecord(where, "the last line has no partner; NeMo-Aligner's format pairs consecutive lines", {})
            return
        halves = []
        for place, half in ((where, first), following):
            parsed = half if isinstance(half, BadRecord) else _guarded(_text, place, half)
            if isinstance(parsed, BadRecord):
                yield parsed
                break
            halves.append(parsed)
        if len(halves) == 2:
            good, bad = halves
            if good.conversations == bad.conversations:
                yield BadRecord(where, "the good text equals the bad one; such a pair says nothing: remove it", first)
                continue
            record = {"chosen": good.conversations[0], "rejected": bad.conversations[0]}
            yield Comparison(good.conversations + bad.conversations, False, (Edge(0, 1),), None, where, record)


def read_comparisons(
    sources: str | Sequence[str],
    format: str = "auto",
    on_bad_record: str = "error",
    *,
    strings: str = "joined",
    labelled: bool = True,
) -> tuple[list[Comparison], ReadReport]:
    """Reads all comparisons.

    Raises:
      InputError: a record cannot be used and `on_bad_record` is `error`; names the file, the line and the field.
    """
    check_choice("data.on_bad_record", on_bad_record, ("error", "skip"))
    report = ReadReport()
    comparisons = []
    for item in iterate(sources, format, strings=strings, labelled=labelled, report=report):
        if isinstance(item, Comparison):
            comparisons.append(item)
        elif on_bad_record == "skip":
            report.skipped[item.reason.split(";")[0].split(" (")[0][:60]] += 1
        else:
            raise InputError(f"{item.where}: {item.reason} (or set data.on_bad_record to skip)")
    return comparisons, report
