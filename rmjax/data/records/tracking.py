"""Records that note which of their fields are read, and the renaming of fields."""

import re
from collections.abc import Sequence
from typing import Any

from rmjax.core.errors import InputError
from rmjax.data.records.fields import BadField
from rmjax.data.schema import Record

LEFT_OUT = "_"  # the new name of a field that is not part of the conversation


class TrackedRecord(dict[str, Any]):
    """A record as its format reads it; notes the fields that are read by `[]`, `get`, `pop`, `values` or `items`.

    `in`, iteration over the names, and copies (`dict(record)`) read nothing.

    >>> record = TrackedRecord({"prompt": "p", "chosen": "c", "note": "n"})
    >>> record["prompt"] + record.get("chosen")
    'pc'
    >>> record.unread()
    {'note': 'n'}

    Attributes:
      row: the record as it lies in the source, with the names of the source.
      renamed: the record for output: with the new names, and with the fields that are left out.
      origins: of a renamed field, by its new name: its names in the source.
      read: names of the fields that were read.
      without_prompt: whether `get_prompt` found none.
    """

    __slots__ = ("origins", "read", "renamed", "row", "without_prompt")

    def __init__(self, record: Record, row: Record | None = None, renamed: Record | None = None):
        super().__init__(record)
        self.row = record if row is None else row
        self.renamed = record if renamed is None else renamed
        self.origins: dict[str, tuple[str, ...]] = {}
        self.read: set[str] = set()
        self.without_prompt = False

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Returns a field's value, and notes that it is read."""
        if name not in self:
            return default
        self.read.add(name)
        return super().__getitem__(name)

    def pop(self, name: str, *default: Any) -> Any:
        """Removes a field and returns its value, and notes that it is read."""
        self.read.add(name)
        return super().pop(name, *default)

    def values(self) -> Any:
        """Returns all values, and notes that all fields are read."""
        self.read.update(self)
        return super().values()

    def items(self) -> Any:
        """Returns all fields, and notes that they are read."""
        self.read.update(self)
        return super().items()

    def sources(self, name: str) -> tuple[str, ...]:
        """Returns the names in the source of a field of this record."""
        return self.origins.get(name, (name,))

    def unread(self) -> dict[str, Any]:
        """Returns the fields that were not read, by their names in the source, without those that are left out."""
        if self.row is self.renamed:
            return {name: self.row[name] for name in self.row if name not in self.read}
        read = {source for name in self.read for source in self.sources(name)}
        here = {source for name in self for source in self.sources(name)}
        replaced = {name for name in self.origins if name in self.row} - here  # by a field that has its name now
        return {name: self.row[name] for name in self.row if name in (here | replaced) - read}


class Columns:
    """The renaming of fields, from `old=new` entries; see `apply`."""

    def __init__(self, entries: Sequence[str]):
        """Raises InputError if an entry has another form."""
        if bad := [entry for entry in entries if not re.fullmatch("[^=]+=.+", entry)]:
            raise InputError(f"config.data.columns holds {bad[0]!r}; expected old=new")
        self._names = [(old, new) for old, new in (entry.split("=", 1) for entry in entries)]
        self.missing = {old for old, _ in self._names}  # which no record has had

    def apply(self, row: Record) -> TrackedRecord:
        r"""Returns the record with the fields renamed; a field renamed to `_` is left out.

        Several fields with the same new name are joined in the order of the entries: strings by a newline, messages
        one after the other, where a string is a user message. A field that had the new name before is replaced.

        >>> Columns(["instruction=prompt", "input=prompt", "note=_"]).apply(
        ...     {"instruction": "Translate:", "input": "Hallo", "note": "n", "chosen": "Hello"}
        ... )
        {'chosen': 'Hello', 'prompt': 'Translate:\nHallo'}

        Raises:
          BadField: fields to join are neither strings nor messages.
        """
        given = [(old, new) for old, new in self._names if old in row]
        if self.missing:
            self.missing.difference_update(row)
        if not given:
            return TrackedRecord(row)
        origins: dict[str, tuple[str, ...]] = {}
        for old, new in given:
            origins[new] = (*origins.get(new, ()), old)
        left_out = {old: row[old] for old in origins.pop(LEFT_OUT, ())}
        moved = {old for old, _ in given}
        record = {name: row[name] for name in row if name not in moved and name not in origins}
        record |= {new: _join(olds, row) for new, olds in origins.items()}
        tracked = TrackedRecord(record, row, record | left_out)
        tracked.origins = origins
        return tracked


def _join(names: tuple[str, ...], row: Record) -> Any:
    """Returns the joined values of several fields; of one, its value."""
    values = [row[name] for name in names if row[name] not in (None, "", [])]
    if len(values) < 2:
        return values[0] if values else row[names[0]]
    if all(isinstance(value, str) for value in values):
        return "\n".join(values)
    if all(isinstance(value, str | list) for value in values):
        turns = [[{"role": "user", "content": value}] if isinstance(value, str) else value for value in values]
        return [turn for part in turns for turn in part]
    raise BadField(f"{' and '.join(names)} cannot be joined by data.columns; expected strings or lists of messages")
