"""Where records lie: JSONL, Parquet and CSV files, `datasets` directories, hub names.

JSON lines are read with `json`, not with `datasets`: its readers lose the line numbers that errors must name, and force
one type on columns that hold strings here and lists of messages there.
"""

import collections
import csv
import dataclasses
import glob
import gzip
import hashlib
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from rmjax.core.errors import InputError

_JSON = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
_PARQUET = (".parquet",)
_CSV = (".csv", ".csv.gz")
_SAID = ("prompt", "chosen", "rejected", "response", "response_1", "response_2", "text")  # fields of a CSV file
_LONGEST_CELL = 1 << 30  # characters of a CSV cell; by itself `csv` ends at 131,072
_NAMED = re.compile(r"([\w.-]+)=(.+)")
_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.\[\]%-]+)?")


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used.

    Attributes:
      where: `path:line`; for Parquet and `datasets`, `path:row`.
      reason: what is wrong with it, and what was found.
      record: what could be read of it.
      kind: the reason without what was found, so that like faults are counted as one.
      tied: nothing is wrong with it, but all its responses are tied.
    """

    where: str
    reason: str
    record: dict[str, Any]
    kind: str
    tied: bool = False


@dataclasses.dataclass
class ReadReport:
    """What was read: the format taken, records, blank lines, and the number skipped by reason."""

    format: str = ""
    records: int = 0
    blank: int = 0
    skipped: collections.Counter = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass(frozen=True)
class Source:
    """One place that records come from.

    Attributes:
      place: a file, a `datasets` directory, or a hub name with an optional `:split`.
      name: the user's name for it (`name=place`), under which metrics report it; empty for none.
      hub: the place is a hub name.
    """

    place: str
    name: str = ""
    hub: bool = False

    def fingerprint(self) -> str:
        """Returns a hash that changes with the content."""
        path = pathlib.Path(self.place)
        if self.hub or path.is_dir():
            return self._dataset()._fingerprint
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def records(self, report: ReadReport) -> Iterator[tuple[str, dict[str, Any] | BadRecord]]:
        """Yields (where, record) of each record in order.

        Raises:
          InputError: the file is damaged, of another encoding, or holds no record.
        """
        before = report.records
        if self.hub or pathlib.Path(self.place).is_dir():
            rows = iter(self._dataset())
            yield from self._numbered(rows, report)
        elif self.place.endswith(_PARQUET):
            yield from self._numbered(self._parquet(), report)
        elif self.place.endswith(_CSV):
            yield from self._csv(report)
        else:
            yield from self._json(report)
        if report.records == before:
            raise InputError(f"{self.place}: the file holds no record")

    def _dataset(self) -> Any:
        import datasets  # slow to import, and needed for directories and hub names alone

        place, _, split = self.place.partition(":") if self.hub else (self.place, "", "")
        try:
            if (pathlib.Path(place) / "state.json").exists() or (pathlib.Path(place) / "dataset_dict.json").exists():
                found = datasets.load_from_disk(place)
            else:
                found = datasets.load_dataset(place, split=split or None)
        except Exception as error:  # datasets raises whatever its readers and its transport raise
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"data {self.place!r}: no such file, and `datasets` cannot load it ({reason})") from error
        if isinstance(found, dict):
            if len(found) > 1:
                raise InputError(
                    f"data {self.place!r} has the splits {sorted(found)}; name one: {place}:SPLIT for a "
                    "hub name, the split's own directory else"
                )
            found = next(iter(found.values()))
        return found

    def _parquet(self) -> Iterator[dict[str, Any]]:
        import pyarrow
        import pyarrow.parquet

        try:
            for batch in pyarrow.parquet.ParquetFile(self.place).iter_batches():
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise InputError(f"{self.place}: damaged, or no Parquet file ({error}); copy it again") from error

    def _numbered(self, rows: Iterator[dict[str, Any]], report: ReadReport) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(rows, 1):
            report.records += 1
            yield f"{self.place}:{number}", row

    def _csv(self, report: ReadReport) -> Iterator[tuple[str, dict[str, Any] | BadRecord]]:
        number = 0

        def lines() -> Iterator[str]:
            nonlocal number
            for at, line in self._lines():
                number = at
                yield line

        try:
            csv.field_size_limit(_LONGEST_CELL)
            reader = csv.DictReader(lines(), strict=True)
            for row in reader:
                report.records += 1
                where = f"{self.place}:{number}"
                if None in row or None in row.values():
                    reason = f"the line has another number of cells than the header's {len(reader.fieldnames or [])}"
                    yield where, BadRecord(where, reason, {}, reason)
                else:
                    yield where, _whole(where, {key: _cell(key, value) for key, value in row.items()})
        except csv.Error as error:
            raise InputError(f"{self.place}: not CSV near line {number} ({error})") from error

    def _lines(self) -> Iterator[tuple[int, str]]:
        opener = gzip.open if self.place.endswith(".gz") else open
        number = 0
        try:
            with opener(self.place, "rt", encoding="utf-8-sig", newline="") as file:
                for number, line in enumerate(file, 1):
                    yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(
                f"{self.place}: truncated or damaged gzip after line {number} ({error}); copy it again"
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(f"{self.place}: not UTF-8 after line {number} ({error}); convert the file") from error

    def _json(self, report: ReadReport) -> Iterator[tuple[str, dict[str, Any] | BadRecord]]:
        for number, line in self._lines():
            where = f"{self.place}:{number}"
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
            else:
                yield where, _whole(where, record) if "\\ud" in line.lower() else record


def _cell(name: str, text: str) -> Any:
    """Returns what a CSV cell holds: a JSON list or object, None if it is empty, else its text, numbers too.

    What may be a text or messages is a text where it holds no messages: an answer may well be JSON.
    """
    if not text:
        return None
    if text[0] in "[{":
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return text
        said = isinstance(found, list) and all(isinstance(entry, dict) and "role" in entry for entry in found)
        return text if name in _SAID and not said else found
    return text


def _whole(where: str, record: dict[str, Any]) -> dict[str, Any] | BadRecord:
    """Returns the record, or why it cannot be: JSON can write half a surrogate pair, which no encoding can."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        reason = "half a surrogate pair (\\ud800 to \\udfff alone), which is no text"
        return BadRecord(where, reason, {}, reason)
    return record


def find_sources(sources: str | Sequence[str]) -> list[Source]:
    """Returns the places that paths, globs and hub names mean, in order; each may be named: `name=path`.

    Raises:
      InputError: nothing is there, or a file is of no known kind.
    """
    found: list[Source] = []
    for source in [sources] if isinstance(sources, str) else sources:
        name, place = "", source
        if (named := _NAMED.fullmatch(source)) and not pathlib.Path(source).exists():
            name, place = named.groups()
        if glob.has_magic(place) and not _HUB.fullmatch(place):
            matches = sorted(glob.glob(place))
            if not matches:
                raise InputError(f"data {source!r}: no file matches this glob")
        else:
            matches = [place]
        found += [_find(match, name) for match in matches]
    if not found:
        raise InputError("data: no source given; set a path, a glob, or 'synthetic'")
    return found


def _find(place: str, name: str) -> Source:
    path = pathlib.Path(place)
    if path.is_dir():
        if not any(path.iterdir()):
            raise InputError(f"data {place!r}: an empty directory; expected one that `datasets` has saved")
        return Source(place, name)
    if path.exists():
        if not path.name.endswith(_JSON + _PARQUET + _CSV):
            kinds = ", ".join(_JSON[:2] + _PARQUET + _CSV)
            raise InputError(f"data {place!r}: expected a JSONL, Parquet or CSV file ({kinds})")
        return Source(place, name)
    if _HUB.fullmatch(place) and not place.endswith(_JSON + _PARQUET + _CSV) and not place.startswith("."):
        return Source(place, name, hub=True)
    raise InputError(f"data {place!r}: no such file; check config.data.train and .validation")


def read_records(
    source: Source, report: ReadReport, columns: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any] | BadRecord]]:
    """Yields (where, record) of a source, with columns renamed.

    Args:
      columns: `old=new` each; where a record has the field `old`, it is called `new` from here on.

    Raises:
      InputError: an entry of `columns` is not of that form, or the source cannot be read.
    """
    names = dict(_column(entry) for entry in columns)
    for where, record in source.records(report):
        if isinstance(record, dict) and (renamed := {names[key]: record[key] for key in names if key in record}):
            record = {key: value for key, value in record.items() if key not in names and key not in renamed} | renamed
        yield where, record


def _column(entry: str) -> tuple[str, str]:
    old, equals, new = entry.partition("=")
    if not (old and equals and new):
        raise InputError(f"config.data.columns holds {entry!r}; expected old=new")
    return old, new


def peek(records: Iterator, count: int) -> tuple[list, Iterator]:
    """Returns the first `count` items, and an iterator over all of them."""
    head = list(itertools.islice(records, count))
    return head, itertools.chain(head, records)
