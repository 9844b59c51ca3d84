"""Records of the field's formats, read as comparisons.

JSON lines are read with `json`, not with `datasets`: its readers lose the line numbers that errors must name, and force
one type on columns that hold strings here and lists of messages there.
"""

import collections
import dataclasses
import functools
import glob
import gzip
import itertools
import json
import pathlib
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from rmjax.core.config import check_choice
from rmjax.core.errors import InputError
from rmjax.data.schema import Comparison, Edge, Message

FORMATS = ("pairs", "nemo_binary", "text", "messages")


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used.

    Attributes:
      where: `path:line`.
      reason: what is wrong with it, and what was found.
      record: what could be read of it.
      kind: the reason without what was found, so that like faults are counted as one.
    """

    where: str
    reason: str
    record: dict[str, Any]
    kind: str


@dataclasses.dataclass
class ReadReport:
    """What was read: the format taken, records, blank lines, and the number skipped by reason."""

    format: str = ""
    records: int = 0
    blank: int = 0
    skipped: collections.Counter = dataclasses.field(default_factory=collections.Counter)


class _BadField(Exception):
    """A record's fault, told without its place; `iterate` adds the place. See `BadRecord` for `kind`."""

    def __init__(self, reason: str, kind: str = ""):
        super().__init__(reason)
        self.kind = kind or reason.split(";")[0]


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
                raise InputError(f"data {str(path)!r}: no such file; check config.data.train and .validation")
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
            except (ValueError, RecursionError) as error:  # ValueError: also an integer of more than 4,300 digits
                yield where, BadRecord(where, f"not JSON ({error})", {}, "not JSON")
                continue
            if not isinstance(record, dict):
                reason = f"expected a JSON object, found {type(record).__name__}"
                yield where, BadRecord(where, reason, {}, reason)
            elif "\\ud" in line.lower() and _has_lone_surrogate(record):
                reason = "half a surrogate pair (\\ud800 to \\udfff alone), which is no text"
                yield where, BadRecord(where, reason, {}, reason)
            else:
                yield where, record
        if report.records == before:
            raise InputError(f"{path}: the file holds no record")


def _has_lone_surrogate(record: dict[str, Any]) -> bool:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def recognise(record: dict[str, Any], following: dict[str, Any] | None, labelled: bool) -> str:
    """Returns the format of the first record; `labelled` data with `text` is NeMo-Aligner's line pairs."""
    if "chosen" in record or "rejected" in record:
        return "pairs"
    if "text" in record:
        return "nemo_binary" if labelled and following is not None and "text" in following else "text"
    if "messages" in record:
        return "messages"
    raise InputError(f"the first record has the keys {sorted(record)}; expected chosen and rejected, text, or "
                     f"messages: set config.data.format to one of {', '.join(FORMATS)} or rename the keys")  # fmt: skip


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
    records = itertools.chain([item for item in head if item is not None], records)
    if format == "auto":
        readable = [item for item in head if item is not None and isinstance(item[1], dict)]
        try:
            following = readable[1][1] if len(readable) > 1 else None
            format = recognise(readable[0][1], following, labelled) if readable else "pairs"
        except InputError as error:
            raise InputError(f"{readable[0][0]}: {error}") from error
    report.format = format
    pair = functools.partial(_pair, chat=strings == "chat")
    parse = {"pairs": pair, "text": _text, "messages": _messages}.get(format)
    if parse is None:
        yield from _nemo_binary(records)
        return
    for where, record in records:
        yield record if isinstance(record, BadRecord) else _guarded(parse, where, record)


def _guarded(parse: Any, where: str, record: dict[str, Any]) -> Comparison | BadRecord:
    try:
        return parse(where, record)
    except _BadField as fault:
        return BadRecord(where, str(fault), record, fault.kind)


def _pair(where: str, record: dict[str, Any], chat: bool) -> Comparison:
    for key in ("chosen", "rejected"):
        if key not in record:
            raise _BadField(f"no {key!r}; a pair needs chosen and rejected")
    margin = 0.0 if record.get("margin") is None else record["margin"]
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not abs(margin) <= sys.float_info.max:
        raise _BadField(f"margin is {margin!r:.60}; expected a finite number", "margin is no finite number")
    chosen, rejected = (_conversation(record, key, chat) for key in ("chosen", "rejected"))
    if type(chosen) is not type(rejected):
        raise _BadField("chosen and rejected are of different types; both must be strings or both lists of messages")
    if chosen == rejected:
        raise _BadField("chosen equals rejected; such a pair says nothing: remove it")
    edge = Edge(0, 1, float(margin))
    return Comparison((chosen, rejected), True, (edge,), None, where, record)


def _conversation(record: dict[str, Any], key: str, chat: bool) -> str | list[Message]:
    """Returns the whole conversation of a response: the prompt, if there is one, and what stands at `key`.

    Messages at `key` that already hold the prompt (UltraFeedback-binarized's form) are the whole conversation: the
    prompt is not said twice. A string prompt beside messages is a user's message.
    """
    response, prompt = record[key], record.get("prompt")
    if isinstance(response, str):
        if not response.strip():
            raise _BadField(f"{key} is empty; a response needs text")
        if prompt is not None and not isinstance(prompt, str):
            raise _BadField(f"prompt is a {type(prompt).__name__} but {key} a string; make both strings or messages")
        if chat and prompt is not None:
            return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return (prompt or "") + response
    messages = _check_messages(response, key)
    if not str(messages[-1]["content"]).strip():
        raise _BadField(f"{key} ends in an empty message; a response needs text")
    if prompt is None:
        return messages
    if isinstance(prompt, str):
        questions = [message["content"] for message in messages if message["role"] == "user"]
        if questions[:1] == [prompt]:
            if messages[-1]["role"] == "user":
                raise _BadField(f"{key} holds the prompt and no response to it; a response needs text")
            return messages
        if messages[0]["role"] != "assistant":
            raise _BadField(f"{key} starts with a {messages[0]['role']!r} message that is not the prompt; give a whole "
                            "conversation without prompt, or a response that starts with the assistant",
                            f"{key} starts with a message that is neither the prompt nor the assistant's")  # fmt: skip
        return [{"role": "user", "content": prompt}, *messages]
    asked = _check_messages(prompt, "prompt")
    if messages == asked:
        raise _BadField(f"{key} holds the prompt and no response to it; a response needs text")
    return messages if messages[: len(asked)] == asked else [*asked, *messages]


def _check_messages(value: Any, key: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise _BadField(f"{key} is {value!r:.60}; expected a string or a list of messages",
                        f"{key} is no string and no list of messages")  # fmt: skip
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _BadField(f"{key} holds the message {message!r:.60}; expected an object with role and content",
                            f"{key} holds a message without role")  # fmt: skip
        if not isinstance(message.get("content"), str):
            raise _BadField(f"{key} holds a {message['role']!r:.60} message whose content is no string",
                            f"{key} holds a message whose content is no string")  # fmt: skip
    return value


def _text(where: str, record: dict[str, Any]) -> Comparison:
    text = record.get("text")
    if not isinstance(text, str) or not text.strip():
        raise _BadField(f"text is {text!r:.60}; expected a string that is not empty", "text is empty or no string")
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
            reason = "the last line has no partner; NeMo-Aligner's format pairs consecutive lines"
            yield BadRecord(where, reason, {}, "the last line has no partner")
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
                reason = "the good text equals the bad one; such a pair says nothing: remove it"
                yield BadRecord(where, reason, first, "the good text equals the bad one")
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
            report.skipped[item.kind] += 1
        else:
            raise InputError(f"{item.where}: {item.reason} (or set data.on_bad_record to skip)")
    return comparisons, report
