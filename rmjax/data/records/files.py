"""Files of records: JSON lines, a JSON array, CSV or Parquet; the text files also compressed by gzip.

JSON is read with `json`: the readers of `datasets` lose the line numbers that errors name, and force one type on
columns that hold strings in some records and lists of messages in others.
"""

import codecs
import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import Any

from rmjax.core.errors import InputError
from rmjax.core.files import identify_text
from rmjax.core.json_text import DuplicateKey, ObjectHook, parse
from rmjax.core.text import count_of
from rmjax.data.records.fields import BadField
from rmjax.data.schema import Record

Row = tuple[int, Record | BadField | None]  # the number of a line or row, and its record; None for a blank line

_CSV = (".csv", ".csv.gz")
_JSON = (".json", ".json.gz")
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", *_CSV, *_JSON)
_TEXT_COLUMNS = ("prompt", "chosen", "rejected", "response", "response_1", "response_2", "text")
_MAX_CELL = 1 << 30  # characters of a CSV cell; the limit of `csv` is 131,072
_CHUNK = 1 << 20  # characters of a JSON array that are read at a time
_BATCH = 1024  # rows of a Parquet file that are held as Python objects
_HEAD = 64  # characters of a text that tell what it is
_ENCODED = "the file is {}; convert it to UTF-8"
_ZEROS = "the file begins with zero bytes; it is damaged, or not a text: copy it again"
# A list of messages in a cell that pandas wrote.
_PRINTED = re.compile(r"\[\s*\{'(role|content|from|value)':")
_SIDES = ("chosen", "rejected")
# A list of strings in a cell: of responses, if both sides have one.
_STRINGS = re.compile(r"\s*\[\s*['\"].*['\"]\s*\]\s*", re.DOTALL)
_GZIP = b"\x1f\x8b"  # the first bytes of a compressed file
_SPACE = re.compile(r"[ \t\r\n]*")
_LONGEST_LITERAL = 12  # characters of a literal or an escape (\\ud800\\udc00) that the end of a piece may cut


def read_rows(location: str) -> Iterator[Row]:
    """Yields the rows of a file in order, numbered by its lines; those of Parquet and of a JSON array by records.

    Raises:
      InputError: the file is damaged, or of another format or encoding; names the line where there is one.
    """
    if location.endswith(".parquet"):
        yield from enumerate(_parquet(location), 1)
    elif location.endswith(_CSV):
        yield from _csv(location)
    else:
        yield from _json(location)


def count_rows(location: str) -> int | None:
    """Returns the number of rows of a Parquet file, or of lines of an uncompressed JSONL file; else None."""
    import pyarrow
    import pyarrow.parquet

    try:
        if location.endswith(".parquet"):
            return pyarrow.parquet.ParquetFile(location).metadata.num_rows
        if not location.endswith(".jsonl"):
            return None
        with open(location, "rb") as file:
            return sum(piece.count(b"\n") for piece in iter(lambda: file.read(_CHUNK), b""))
    except (pyarrow.ArrowException, OSError):
        return None  # the error is raised, and explained, by `read_rows`


def check_object(record: Any) -> Record | BadField:
    """Returns the record, or the error if it is not an object of valid text."""
    if isinstance(record, BadField):
        return record
    if not isinstance(record, dict):
        return BadField(f"expected a JSON object, found {type(record).__name__}")
    return _check_unicode(record)


def _parquet(location: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(location).iter_batches(batch_size=_BATCH):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{location}: damaged, or not a Parquet file ({error}); copy it again") from error


def _csv(location: str) -> Iterator[Row]:
    csv.field_size_limit(_MAX_CELL)
    reader = csv.reader(_pieces(location), strict=True)
    try:
        header = next(reader, [])
        if twice := [name for name in header if name and header.count(name) > 1]:
            raise InputError(f"{location}: two columns have the name {twice[0]!r}; rename one")
        for cells in filter(None, reader):
            yield reader.line_num, _parse_cells(header, cells)
    except csv.Error as error:
        raise InputError(f"{location}: not CSV near line {reader.line_num} ({error})") from error


def _json(location: str) -> Iterator[Row]:
    """Yields the records of JSON lines, or of one array: a line with a record never begins with a bracket."""
    pieces = _pieces(location, _CHUNK)
    start = next((piece for piece in pieces if not piece.isspace()), "")
    if start.lstrip().startswith("["):
        yield from enumerate(_Array(location, itertools.chain([start], pieces)), 1)
        return
    pieces.close()
    first = True
    for number, line in enumerate(_pieces(location), 1):
        if not line.strip():
            yield number, None
            continue
        record = _parse_json(line)
        # A record over several lines would give an error per line; so would an object that holds the list.
        if first and isinstance(record, BadField) and not line.rstrip().endswith("}") and location.endswith(_JSON):
            expected = "expected one array of records, or one record per line"
            raise InputError(
                f"{location}: line {number} holds no whole record; {expected}: write the file again as such"
            )
        first = False
        yield number, record


class _Array:
    """The records of a JSON array, of whose text one piece is held at a time.

    Args:
      pieces: the text, whose first character apart from white space is an opening bracket.
    """

    def __init__(self, location: str, pieces: Iterator[str]):
        self._location, self._pieces = location, pieces
        self._text, self._at, self._complete = "", 0, False  # `_text[_at:]` is to be parsed
        self._line, self._count = 1, 0  # the line in which `_text` begins; the records that were parsed
        self._hook = ObjectHook()
        self._decoder = json.JSONDecoder(object_pairs_hook=self._hook)

    def __iter__(self) -> Iterator[Record | BadField]:
        self._peek()
        self._at += 1
        if self._peek() != "]":
            yield self._record()
            while self._peek() == ",":
                self._at += 1
                yield self._record()
        if (found := self._peek()) != "]":
            raise self._damaged(f"found {found!r}, expected a comma or ]" if found else "it is not closed", self._at)
        self._at += 1
        if self._peek():
            raise self._damaged("text follows it; a line of JSONL has to be an object", self._at)

    def _peek(self) -> str:
        """Returns the next character that is not white space; "" at the end of the text."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # matches any text
            if self._at < len(self._text) or self._complete:
                return self._text[self._at : self._at + 1]
            self._fill()

    def _record(self) -> Record | BadField:
        self._peek()
        while True:
            self._hook.duplicate = ""
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_LITERAL
                if self._complete or not cut:
                    raise self._damaged(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:  # an integer of more than 4,300 digits; nested too deeply
                raise self._damaged(str(error), self._at) from error
            else:
                if end < len(self._text) or self._complete:  # else a number may continue
                    surrogates = "\\ud" in self._text[self._at : end].lower()
                    self._at, self._count = end, self._count + 1
                    if self._hook.duplicate:
                        return BadField(self._hook.duplicate)
                    return check_object(value) if surrogates or not isinstance(value, dict) else value
            self._fill()

    def _fill(self) -> None:
        """Adds as much text as is left: a record of many pieces is not parsed once per piece."""
        self._line += self._text.count("\n", 0, self._at)
        rest = self._text[self._at :]
        more = "".join(itertools.islice(self._pieces, 1 + len(rest) // _CHUNK))
        self._text, self._at, self._complete = rest + more, 0, not more

    def _damaged(self, reason: str, position: int) -> InputError:
        line = self._line + self._text.count("\n", 0, position)
        place = f"line {line}, after {count_of(self._count, 'whole record')}"
        return InputError(f"{self._location}: the JSON array is damaged in {place} ({reason}); copy or write it again")


def _pieces(location: str, size: int = 0) -> Generator[str, None, None]:
    """Yields the lines of a text file, or pieces of `size` characters."""
    count, blank, opener = 0, True, gzip.open if location.endswith(".gz") else open
    try:
        with opener(location, "rt", encoding="utf-8-sig", newline="") as file:
            for piece in iter(lambda: file.read(size), "") if size else file:
                if blank and not piece.isspace():
                    _check_start(location, piece.lstrip()[:_HEAD])
                    blank = False
                count += 1
                yield piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        with open(location, "rb") as compressed:
            if compressed.read(len(_GZIP)) != _GZIP:
                raise InputError(f"{location}: not compressed by gzip; remove .gz from its name") from error
        place = "" if size else f" after line {count}"
        raise InputError(f"{location}: truncated or damaged gzip{place} ({error})") from error
    except UnicodeDecodeError as error:
        raise _encoding_error(location, opener) from error


def _check_start(location: str, text: str) -> None:
    """Raises InputError if a text is not data: a page that was compressed, or another encoding.

    ASCII has one zero beside each character in UTF-16, and three in UTF-32.
    """
    if what := identify_text(text.encode()):
        raise InputError(f"{location}: {what}")
    if "\0" in text[:2]:
        encoding = "UTF-32" if "\0\0\0" in text[:4] else "UTF-16"
        raise InputError(f"{location}: {_ENCODED.format(encoding) if text.strip(chr(0)) else _ZEROS}")


def _encoding_error(location: str, opener: Callable) -> InputError:
    """Returns the error of a file that is not UTF-8, with its first such line: the decoder reads ahead of lines."""
    with opener(location, "rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # begins as UTF-16's
                return InputError(f"{location}: {_ENCODED.format('UTF-32')}")
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                return InputError(f"{location}: {_ENCODED.format('UTF-16')}")
            try:
                line.decode()
            except UnicodeDecodeError as error:
                at = f"byte {line[error.start]:#04x} at position {error.start} of the line"
                return InputError(f"{location}:{number}: not UTF-8 ({at}); convert the file to UTF-8")
    return InputError(f"{location}: not UTF-8; convert the file to UTF-8")


def _parse_json(line: str) -> Record | BadField:
    try:
        record = parse(line)
    except DuplicateKey as error:
        return BadField(str(error))
    except (ValueError, RecursionError) as error:  # ValueError also for an integer of more than 4,300 digits
        return BadField(f"not JSON ({error})", "not JSON")
    return check_object(record) if not isinstance(record, dict) or "\\ud" in line.lower() else record


def _parse_cells(header: list[str], cells: list[str]) -> Record | BadField:
    if len(cells) != len(header):
        return BadField(f"the line has another number of cells than the header's {len(header)}")
    for name, cell in zip(header, cells, strict=True):
        if _PRINTED.match(cell):
            return BadField(
                f"{name} holds messages as Python prints them; write JSON text (json.dumps), or a JSONL or Parquet file"
            )
    sides = [cell for name, cell in zip(header, cells, strict=True) if name in _SIDES]
    if len(sides) == len(_SIDES) and all(map(_STRINGS.fullmatch, sides)):
        return BadField(
            "chosen and rejected hold lists of strings, which a CSV cell cannot tell from text; write the lists to a "
            "JSONL or Parquet file"
        )
    try:
        return _check_unicode({name: _parse_cell(name, cell) for name, cell in zip(header, cells, strict=True)})
    except BadField as error:
        return error


def _parse_cell(name: str, text: str) -> Any:
    """Returns a CSV cell's value: None if empty, a JSON list or object, else the text, of numbers too."""
    if text[:1] not in ("[", "{"):
        return text or None
    hook = ObjectHook()
    try:
        value = json.loads(text, object_pairs_hook=hook)
    except (ValueError, RecursionError):
        return text
    # Of the columns with texts, only lists of messages are parsed: a response may be JSON text.
    is_message = lambda entry: isinstance(entry, dict) and bool({"role", "from"} & entry.keys())
    is_messages = isinstance(value, list) and all(map(is_message, value))
    if not is_messages and name in _TEXT_COLUMNS:
        return text
    if hook.duplicate:
        raise BadField(f"{name}: {hook.duplicate}")
    return value


def _check_unicode(record: Record) -> Record | BadField:
    """Returns the record, or the error if it has half a surrogate pair, which JSON can hold and UTF-8 cannot."""
    try:
        json.dumps(record, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return BadField("half a surrogate pair (\\ud800 to \\udfff alone), which is not valid text")
    return record
