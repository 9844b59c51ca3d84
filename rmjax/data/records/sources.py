"""Data sources: files, `datasets` directories, hub names, and records in memory."""

import dataclasses
import glob
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from rmjax.core import remote
from rmjax.core.errors import InputError
from rmjax.core.files import identify
from rmjax.data.records.fields import BadField
from rmjax.data.records.files import SUFFIXES, check_object, count_rows, read_rows
from rmjax.data.records.huggingface import is_hub_name, load_dataset, split_location
from rmjax.data.records.memory import check_records, iterate_records
from rmjax.data.records.report import ReadReport
from rmjax.data.records.tracking import Columns
from rmjax.data.schema import Record

_MODEL_FILES = ("*.safetensors", "pytorch_model*.bin", "head.json")  # of a model, of a workdir
_NAMED = re.compile(r"([\w.-]+)=(.+)")
_URL_SPLIT = re.compile(r"(.+/[^/:]+)(:[\w.-]+)")


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used."""

    where: str  # `path:line`; for Parquet, JSON arrays and `datasets`, `path:row`
    reason: str
    record: Record  # the fields that could be read
    kind: str  # the reason without the value found, by which bad records are counted
    tied: bool = False  # the record is valid, but all its responses are tied


Entry = tuple[str, Record | BadRecord]  # `path:line`, and its record


@dataclasses.dataclass(frozen=True)
class Source:
    """A file, a `datasets` directory, a hub name, or records in memory."""

    location: str  # path, or hub name, both with an optional `:split`; of records in memory, their name in messages
    name: str = ""  # the user's name for it (`name=location`), under which metrics are reported too; empty: none
    hub: bool = False  # whether the location is a hub name
    held: Any = dataclasses.field(default=None, compare=False, repr=False)  # the records in memory; see `memory_source`
    url: str = ""  # from which the file at `location` was downloaded; empty: it is local

    @property
    def label(self) -> str:
        """The location as the user gave it, for messages."""
        return self.url or self.location

    def __str__(self) -> str:
        return f"{self.name}={self.label}" if self.name else self.label

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

    def version(self) -> tuple[int, int]:
        """Returns size and time of modification of a file, (0, 0) for others: tells if it changed since."""
        path = pathlib.Path(self.location)
        if self.held is not None or self._has_splits or not path.is_file():
            return 0, 0
        found = path.stat()
        return found.st_size, found.st_mtime_ns

    def count(self) -> int | None:
        """Returns the number of rows or lines, for progress bars; None where it would take as long as reading them."""
        if self.held is not None or self._has_splits:
            return len(self.held if self.held is not None else load_dataset(self.location, hub=self.hub))
        return count_rows(self.location)

    def records(self, report: ReadReport, columns: Sequence[str] = ()) -> Iterator[Entry]:
        """Yields (`path:line`, TrackedRecord) in order, with the fields renamed (see `Columns`); updates `report`.

        Raises:
          InputError: `columns` has another form; or the file is damaged, empty, or of another encoding.
        """
        renaming = Columns(columns)
        before = report.records
        for number, row in self._rows(report):
            report.records += 1
            where = f"{self.label}:{number}"
            try:
                if isinstance(row, BadField):
                    raise row
                yield where, renaming.apply(row)
            except BadField as error:
                yield where, BadRecord(where, str(error), {} if isinstance(row, BadField) else row, error.kind)
        report.missing += [old for old in sorted(renaming.missing) if old not in report.missing]
        if report.records == before:
            raise InputError(f"{self.label}: holds no record")

    def _rows(self, report: ReadReport) -> Iterator[tuple[int, Record | BadField]]:
        if self.held is not None:
            yield from enumerate(map(check_object, iterate_records(self.held)), 1)
        elif self._has_splits:
            yield from enumerate(load_dataset(self.location, hub=self.hub), 1)
        else:
            for number, record in read_rows(self.location):
                if record is None:
                    report.blank += 1
                else:
                    yield number, record


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
    URLs (s3://, gs://, https://, …) are downloaded.

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
        if remote.is_remote(location):
            found += [_fetch(url, name) for url in remote.glob(location)]
            continue
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


def _fetch(url: str, name: str) -> Source:
    address, split = match.groups() if (match := _URL_SPLIT.fullmatch(url)) else (url, "")
    return dataclasses.replace(_make_source(f"{remote.fetch(address)}{split}", name), url=url)


def _make_source(location: str, name: str) -> Source:
    path, known = pathlib.Path(split_location(location)[0]), location.endswith(SUFFIXES)
    if what := identify(path):
        raise InputError(f"data {location!r}: {what}")
    if path.is_dir():
        if not any(path.iterdir()):
            raise InputError(f"data {location!r}: the directory is empty; expected one written by `datasets`")
        if any(any(path.glob(pattern)) for pattern in _MODEL_FILES):
            raise InputError(f"data {location!r}: this is a directory of a model or of a training run, not of data")
    elif path.exists():
        if not known:
            raise InputError(f"data {location!r}: expected a JSONL, Parquet or CSV file ({', '.join(SUFFIXES)})")
    elif known or location.startswith(".") or not is_hub_name(location):
        raise InputError(f"data {location!r}: no such file; check the path")
    return Source(location, name, hub=not path.exists())
