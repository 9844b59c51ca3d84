"""The report of reading: formats, counts, skipped records, and what the fields were used as."""

import collections
import dataclasses
import zlib
from collections.abc import Iterable
from typing import Any

from rmjax.data.records.content import CONVERSATION, MEDIA, TEXT, strings

_KINDS = (CONVERSATION, MEDIA, TEXT)
_MAX_VALUES = 64  # different values of a field that are counted
_RECORDS_PER_LABEL = 4  # short values that occur in more records than this, on average, are labels
_MAX_LABEL = 60  # characters of a label
_SHOWN = 6  # unread fields in a line


@dataclasses.dataclass
class FieldValues:
    """What values a field has over the records, in bounded memory; tells texts from labels.

    Attributes:
      kind: `content.CONVERSATION`, `content.MEDIA` or `content.TEXT`; if the values differ, the first of these.
      count: number of records with a value.
      long: number of records whose value is longer than a label.
      values: hashes of at most `_MAX_VALUES` different values.
      required: the value may not be a label: it belongs to the conversation by its field's name.
    """

    kind: str
    count: int = 0
    long: int = 0
    values: list[int] = dataclasses.field(default_factory=list)
    required: bool = False

    def add(self, value: Any) -> None:
        """Counts a value."""
        text = value if isinstance(value, str) else "\n".join(strings(value))
        self.count += 1
        self.long += len(text) > _MAX_LABEL
        if len(self.values) < _MAX_VALUES:
            self._add_hashes([zlib.crc32(text.encode("utf-8", "surrogatepass"))])

    def merge(self, other: "FieldValues") -> None:
        """Adds the values of the same field in other records."""
        self.kind = min(self.kind, other.kind, key=_KINDS.index)
        self.count += other.count
        self.long += other.long
        self.required = self.required or other.required
        self._add_hashes(other.values)

    def _add_hashes(self, hashes: Iterable[int]) -> None:
        for value in hashes:
            if len(self.values) < _MAX_VALUES and value not in self.values:
                self.values.append(value)

    @property
    def differs(self) -> bool:
        """Whether the values differ from record to record: they are not one value, or few short ones."""
        distinct = len(self.values)
        if self.count < 2:
            return True
        if distinct < 2 or 2 * self.long > self.count:
            return distinct > 1
        return distinct >= min(_MAX_VALUES, self.count / _RECORDS_PER_LABEL)

    @property
    def is_content(self) -> bool:
        """Whether the values are content that a reader of the data would miss."""
        return self.kind != TEXT or self.required or self.differs


@dataclasses.dataclass
class ReadReport:
    """Formats found, numbers of records and blank lines read, the skipped records, and the use of the fields.

    The reports of parts of a source can be merged, and written as JSON (`json.dumps(vars(report), default=vars)`).

    Attributes:
      skipped: counts skipped records by kind (see `BadRecord`).
      first_skipped: `where: reason` of the first one of each kind.
      no_prompt: number of comparisons without a prompt.
      used: by the source's name of each field that was read in a comparison: what it is used as.
      unread: fields that hold a conversation, media or text and were not read.
      missing: fields to rename (`data.columns`) that no record has.
    """

    format: str = ""
    records: int = 0
    blank: int = 0
    skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    first_skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    no_prompt: int = 0
    used: dict[str, str] = dataclasses.field(default_factory=dict)
    unread: dict[str, FieldValues] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:  # of a report from JSON
        self.skipped = collections.Counter(self.skipped)
        self.unread = {
            name: FieldValues(**found) if isinstance(found, dict) else found for name, found in self.unread.items()
        }

    def skip(self, where: str, reason: str, kind: str) -> None:
        """Counts a skipped record."""
        self.skipped[kind] += 1
        self.first_skipped.setdefault(kind, f"{where}: {reason}")

    def add_unread(self, name: str, kind: str, value: Any, *, required: bool) -> None:
        """Counts a field that was not read; for `required`, see `FieldValues`."""
        found = self.unread.setdefault(name, FieldValues(kind))
        found.kind = min(kind, found.kind, key=_KINDS.index)
        found.required = found.required or required
        found.add(value)

    def merge(self, other: "ReadReport") -> None:
        """Adds the report of later records."""
        formats = [*self.format.split(", "), *other.format.split(", ")]
        self.format = ", ".join(dict.fromkeys(filter(None, formats)))
        self.records += other.records
        self.blank += other.blank
        self.skipped.update(other.skipped)
        self.first_skipped = other.first_skipped | self.first_skipped
        self.no_prompt += other.no_prompt
        self.used = self.used | {name: use for name, use in other.used.items() if name not in self.used}
        for name, found in other.unread.items():
            self.unread.setdefault(name, FieldValues(found.kind)).merge(found)
        self.missing += [name for name in other.missing if name not in self.missing]

    def fields_line(self) -> str:
        """Returns a line about the use of the fields, the comparisons without a prompt, and unread content.

        Shares are of the records. Empty for the built-in data. Without a comparison, only unread content is named.

        >>> report = ReadReport(records=4, no_prompt=1, used={"question": "prompt", "chosen": "chosen"})
        >>> report.add_unread("context", "text", "An unread text.", required=False)
        >>> report.fields_line()
        'fields: question -> prompt, chosen; without a prompt: 1 (25 %); not read: `context` (text, 25 %)'
        """
        if not self.used and not self.unread and not self.missing:
            return ""
        used = [name if use == name else f"{name} -> {use}" for name, use in self.used.items()]
        prompts = f"{self.no_prompt:,}" + (f" ({self._share(self.no_prompt)})" if self.no_prompt else "")
        parts = [f"fields: {', '.join(used)}", f"without a prompt: {prompts}"] if used else []
        content = {name: found for name, found in self.unread.items() if found.is_content}
        unread = [f"`{name}` ({found.kind}, {self._share(found.count)})" for name, found in content.items()]
        more = [f"{len(unread) - _SHOWN} more"] if len(unread) > _SHOWN else []
        parts += [f"not read: {', '.join(unread[:_SHOWN] + more)}"] if unread else []
        missing = ", ".join(f"`{name}`" for name in self.missing)
        parts += [f"no record has {missing} (data.columns)"] if missing else []
        return "; ".join(parts)

    def _share(self, count: int) -> str:
        percent = 100 * count / max(self.records, 1)
        return f"{percent:.0f} %" if percent >= 0.5 else "under 1 %"
