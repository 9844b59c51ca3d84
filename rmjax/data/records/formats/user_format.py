"""Formats that a user defines: a Python file with a function `parse` from a record to a comparison."""

import dataclasses
import hashlib
import pathlib

import numpy as np

from rmjax.core.errors import InputError
from rmjax.core.python_file import describe_error, load_module
from rmjax.data.records.fields import BadField, messages
from rmjax.data.records.files import check_object
from rmjax.data.records.memory import iterate_records
from rmjax.data.schema import Comparison, Record

FUNCTION = "parse"


def is_user_format(format: str) -> bool:
    """Whether a value of `config.data.format` is a path of a Python file."""
    return format.endswith(".py")


def fingerprint(format: str) -> str:
    """Returns the SHA-256 of a user's file, on which the comparisons depend; "" for other formats."""
    return hashlib.sha256(_path(format).read_bytes()).hexdigest() if is_user_format(format) else ""


class UserFormat:
    """A user's file that defines `parse(record)`, which returns a record of another format, or a Comparison.

    A ValueError, or any other exception, that `parse` raises is the reason why the record cannot be used.

    Raises:
      InputError: there is no such file, or it fails or defines no such function; names the line.
    """

    def __init__(self, path: str):
        self.name, self._path = path, str(_path(path))
        try:
            module = load_module(self._path, "rmjax_format")
        except Exception as error:  # the file is a program
            raise InputError(f"data.format = {path}: {describe_error(error, self._path)}") from error
        self._parse = getattr(module, FUNCTION, None)
        if not callable(self._parse):
            raise InputError(f"data.format = {path}: defines no function {FUNCTION}(record); see docs/data.md")

    def convert(self, record: Record, *, labeled: bool) -> Record | Comparison:
        """Returns what `parse` makes of a record; a comparison without labels unless `labeled`.

        Raises:
          BadField: `parse` fails, or returns something else.
        """
        try:
            found = self._parse(record)  # type: ignore[misc]  # checked above
        except Exception as error:
            kind = f"{FUNCTION}() of {self.name}: {type(error).__name__}"
            raise BadField(f"{FUNCTION}() of {self.name}, {describe_error(error, self._path)}", kind) from error
        if isinstance(found, Comparison):
            try:
                return _check_comparison(found, labeled)
            except (BadField, TypeError, ValueError) as error:
                raise BadField(f"{FUNCTION}() of {self.name} returned an invalid Comparison: {error}") from error
        if not isinstance(found, dict):
            kind = f"{FUNCTION}() of {self.name} returned {type(found).__name__}"
            raise BadField(f"{kind}; expected a record (a dict) of a format, or a Comparison", kind)
        plain = check_object(next(iterate_records([found])))
        if isinstance(plain, BadField):
            raise plain
        return plain


def _path(path: str) -> pathlib.Path:
    found = pathlib.Path(path).expanduser()
    if not found.is_file():
        raise InputError(f"data.format = {path}: no such file; expected a Python file that defines {FUNCTION}(record)")
    return found


def _check_comparison(found: Comparison, labeled: bool) -> Comparison:
    """Returns a comparison whose edges' weights sum to 1, without edges and labels unless `labeled`."""
    conversations = tuple(
        whole if isinstance(whole, str) else messages(whole, f"conversations[{k}]")
        for k, whole in enumerate(found.conversations)
    )
    if not conversations or (found.steps and len(conversations) > 1):
        raise BadField(f"it has {len(conversations)} conversations; expected at least one, and one if there are steps")
    if not labeled:
        return dataclasses.replace(found, conversations=conversations, edges=(), labels=None, attributes=())
    readouts = len(found.steps) or len(conversations)
    for edge in found.edges:
        if not {edge.winner, edge.loser} <= set(range(readouts)) or edge.winner == edge.loser or not edge.weight > 0:
            raise BadField(f"{edge} is not between two of the {readouts} readouts, with a weight above 0")
    total = sum(edge.weight for edge in found.edges)
    edges = tuple(dataclasses.replace(edge, weight=edge.weight / total) for edge in found.edges)
    labels = None if found.labels is None else np.asarray(found.labels, np.float32)
    if labels is not None and labels.shape != (expected := (readouts, len(found.attributes))):
        raise BadField(f"its labels have the shape {labels.shape}; expected {expected}: readouts by attributes")
    return dataclasses.replace(found, conversations=conversations, edges=edges, labels=labels)
