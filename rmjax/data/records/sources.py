"""Data sources: JSONL, Parquet and CSV files, `datasets` directories, hub names, and records in memory.

JSON lines are read with `json`: the readers of `datasets` lose the line numbers that errors name, and force one type on
columns that hold strings in some records and lists of messages in others.
"""

import codecs
import collections
import csv
import dataclasses
import glob
import gzip
import hashlib
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rmjax.core.errors import InputError
from rmjax.core.files import identify
from rmjax.data.records.fields import BadField
from rmjax.data.records.huggingface import is_hub_name, load_dataset, split_location
from rmjax.data.records.memory import check_records, iterate_records
from rmjax.data.schema import Record

_CSV = (".csv", ".csv.gz")
_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", *_CSV, ".json", ".json.gz")
_TEXT_COLUMNS = ("prompt", "chosen", "rejected", "response", "response_1", "response_2", "text")
_MODEL_FILES = ("*.safetensors", "pytorch_model*.bin", "head.json")  # of a model, of a workdir
_MAX_CELL = 1 << 30  # characters of a CSV cell; the limit of `csv` is 131,072
_NAMED = re.compile(r"([\w.-]+)=(.+)")


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used."""

    where: str  # `path:line`; for Parquet and `datasets`, `path:row`
    reason: str
    record: Record  # the fields that could be read
    kind: str  # the reason without the value found, by which bad records are counted
    tied: bool = False  # the record is valid, but all its responses are tied


@dataclasses.dataclass
class ReadReport:
    """Formats found, numbers of records and blank lines read, and the skipped records.

    `skipped` counts them by kind (see `BadRecord`); `first_skipped` has `where: reason` of the first one of each kind.
    """

    format: str = ""
    records: int = 0
    blank: int = 0
    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    first_skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def skip(self, where: str, reason: str, kind: str) -> None:
        """Counts a skipped record."""
        self.skipped[kind] += 1
        self.first_skipped.setdefault(kind, f"{where}: {reason}")


@dataclasses.dataclass(frozen=True)
class Source:
    """A file, a `datasets` directory, a hub name, or records in memory."""

    location: str  # path, or hub name, both with an optional `:split`; of records in memory, their name in messages
    name: str = ""  # the user's name for it (`name=location`), under which metrics are reported too; empty: none
    hub: bool = False  # whether the location is a hub name
    held: Any = dataclasses.field(default=None, compare=False, repr=False)  # the records in memory; see `memory_source`

    def __str__(self) -> str:
        return f"{self.name}={self.location}" if self.name else self.location

    def fingerprint(self) -> str:
        """Returns a hash of the content."""
        if self.held is not None:
            digest = hashlib.sha256()
            for record in iterate_records(self.held):
                digest.update(json.dumps(record, default=str).encode() + b"\n")
            return digest.hexdigest()
        if self._has_splits:
            return load_dataset(self.location, hub=self.hub)._fingerprint
        with open(self.location, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def _has_splits(self) -> bool:
        return self.hub or os.path.isdir(split_location(self.location)[0])

    def records(self, report: ReadReport, columns: Sequence[str] = ()) -> Iterator[tuple[str, Record | BadRecord]]:
        """Yields (`path:line`, record) in order, with the fields `columns` renamed (`old=new`); updates `report`.

        Raises:
          InputError: `columns` has another form; or the file is damaged, empty, or of another encoding.
        """
        if bad := [entry for entry in columns if not re.fullmatch("[^=]+=.+", entry)]:
            raise InputError(f"config.data.columns holds {bad[0]!r}; expected old=new")
        names = dict(entry.split("=", 1) for entry in columns)
        before = report.records
        for number, row in self._rows(report):
            report.records += 1
            where = f"{self.location}:{number}"
            if isinstance(row, BadField):
                yield where, BadRecord(where, str(row), {}, row.kind)
            elif renamed := {new: row[old] for old, new in names.items() if old in row}:
                yield where, {key: row[key] for key in row if key not in names and key not in renamed} | renamed
            else:
                yield where, row
        if report.records == before:
            raise InputError(f"{self.location}: holds no record")

    def _rows(self, report: ReadReport) -> Iterator[tuple[int, Record | BadField]]:
        if self.held is not None:
            yield from enumerate(map(_check_object, iterate_records(self.held)), 1)
        elif self._has_splits:
            yield from enumerate(load_dataset(self.location, hub=self.hub), 1)
        elif self.location.endswith(".parquet"):
            yield from enumerate(self._parquet(), 1)
        elif self.location.endswith(_CSV):
            yield from self._csv()
        else:
            for number, line in self._lines():
                if line.strip():
                    yield number, _parse_json(line)
                else:
                    report.blank += 1

    def _parquet(self) -> Iterator[Record]:
        import pyarrow
        import pyarrow.parquet

        try:
            for batch in pyarrow.parquet.ParquetFile(self.location).iter_batches():
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{self.location}: damaged, or not a Parquet file ({error}); copy it again") from error

    def _csv(self) -> Iterator[tuple[int, Record | BadField]]:
        csv.field_size_limit(_MAX_CELL)
        reader = csv.reader((line for _, line in self._lines()), strict=True)
        try:
            header = next(reader, [])
            fault = BadField(f"the line has another number of cells than the header's {len(header)}")
            for cells in filter(None, reader):
                row = {name: _parse_cell(name, cell) for name, cell in zip(header, cells, strict=False)}
                yield reader.line_num, _check_unicode(row) if len(cells) == len(header) else fault
        except csv.Error as error:
            raise InputError(f"{self.location}: not CSV near line {reader.line_num} ({error})") from error

    def _lines(self) -> Iterator[tuple[int, str]]:
        number = 0
        try:
            opener = gzip.open if self.location.endswith(".gz") else open
            with opener(self.location, "rt", encoding="utf-8-sig", newline="") as file:
                for number, line in enumerate(file, 1):
                    yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{self.location}: truncated or damaged gzip after line {number} ({error})") from error
        except UnicodeDecodeError as error:
            raise self._encoding_error(opener) from error

    def _encoding_error(self, opener: Callable) -> InputError:
        """Returns the error of a file that is not UTF-8, with its first such line: the decoder reads ahead of lines."""
        with opener(self.location, "rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    return InputError(f"{self.location}: the file is UTF-16; convert it to UTF-8")
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    at = f"byte {line[error.start]:#04x} at position {error.start} of the line"
                    return InputError(f"{self.location}:{number}: not UTF-8 ({at}); convert the file to UTF-8")
        return InputError(f"{self.location}: not UTF-8; convert the file to UTF-8")


def _parse_json(line: str) -> Record | BadField:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError also for an integer of more than 4,300 digits
        return BadField(f"not JSON ({error})", "not JSON")
    return _check_object(record) if not isinstance(record, dict) or "\\ud" in line.lower() else record


def _check_object(record: Any) -> Record | BadField:
    """Returns the record, or the error if it is not an object of valid text."""
    if isinstance(record, BadField):
        return record
    if not isinstance(record, dict):
        return BadField(f"expected a JSON object, found {type(record).__name__}")
    return _check_unicode(record)


def _parse_cell(name: str, text: str) -> Any:
    """Returns a CSV cell's value: None if empty, a JSON list or object, else the text, of numbers too."""
    if text[:1] not in ("[", "{"):
        return text or None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    # Of the columns with texts, only lists of messages are parsed: a response may be JSON text.
    is_messages = isinstance(value, list) and all(isinstance(entry, dict) and "role" in entry for entry in value)
    return value if is_messages or name not in _TEXT_COLUMNS else text


def _check_unicode(record: Record) -> Record | BadField:
    """Returns the record, or the error if it has half a surrogate pair, which JSON can hold and UTF-8 cannot."""
    try:
        json.dumps(record, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return BadField("half a surrogate pair (\\ud800 to \\udfff alone), which is not valid text")
    return record


SourceLike = str | os.PathLike[str] | Source
Sources = SourceLike | Sequence[SourceLike]


def memory_source(records: Any, name: str = "", location: str = "records") -> Source:
    """Returns the source of records in memory, whose comparisons have the `where` `records:1`, `records:2`, …

    Each record is read as the line of a JSONL file with the same content would be.

    >>> report = ReadReport()
    >>> list(memory_source([{"prompt": "p", "response": ("r",)}]).records(report))
    [('records:1', {'prompt': 'p', 'response': ['r']})]

    Args:
      records: a list of dictionaries, a `datasets.Dataset`, or a pandas DataFrame; not copied.
      name: under which metrics are reported too; empty: none.
      location: name of the records in messages, instead of a path.

    Raises:
      InputError: `records` is of another type.
    """
    check_records(records, location)
    return Source(location, name, held=records)


def as_tuple(sources: Sources) -> tuple[str | Source, ...]:
    """Returns one or several sources as a tuple, with paths as strings."""
    given = [sources] if isinstance(sources, str | os.PathLike | Source) else sources
    return tuple(source if isinstance(source, Source) else os.fspath(source) for source in given)


def find_sources(sources: Sources) -> list[Source]:
    """Returns the sources for paths, globs and hub names, in order; each may be given a name: `name=path`.

    Of a directory that `datasets` wrote and of a hub name, `:SPLIT` chooses a split. A Source is returned as it is.

    Raises InputError if there is no such file, or its type is not supported.
    """
    found: list[Source] = []
    for source in as_tuple(sources):
        if isinstance(source, Source):
            found.append(source)
            continue
        name, location = "", source
        if (named := _NAMED.fullmatch(source)) and not pathlib.Path(source).exists():
            name, location = named.groups()
        location = os.path.expanduser(location)
        if not location:
            raise InputError("data: the name of a source is empty; give a path, a glob, or 'synthetic'")
        is_glob = glob.has_magic(location) and not is_hub_name(location) and not split_location(location)[1]
        matches = sorted(glob.glob(location)) if is_glob else [location]
        if not matches:
            raise InputError(f"data {source!r}: no file matches this glob")
        found += [_make_source(match, name) for match in matches]
    if not found:
        raise InputError("data: no source given; set a path, a glob, or 'synthetic'")
    return found


def _make_source(location: str, name: str) -> Source:
    path, known = pathlib.Path(split_location(location)[0]), location.endswith(_SUFFIXES)
    if what := identify(path):
        raise InputError(f"data {location!r}: {what}")
    if path.is_dir():
        if not any(path.iterdir()):
            raise InputError(f"data {location!r}: the directory is empty; expected one written by `datasets`")
        if any(any(path.glob(pattern)) for pattern in _MODEL_FILES):
            raise InputError(f"data {location!r}: this is a directory of a model or of a training run, not of data")
    elif path.exists():
        if not known:
            raise InputError(f"data {location!r}: expected a JSONL, Parquet or CSV file ({', '.join(_SUFFIXES)})")
    elif known or location.startswith(".") or not is_hub_name(location):
        raise InputError(f"data {location!r}: no such file; check the path")
    return Source(location, name, hub=not path.exists())
