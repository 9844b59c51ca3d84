"""Decoding of JSON bodies, with errors that name the field, the value found and the type expected."""

import json
import re
import reprlib
from typing import Any, TypeVar

import msgspec

from rmjax.serving.errors import RequestError

T = TypeVar("T")
# Messages of msgspec.ValidationError, such as "Expected `str`, got `int` - at `$.query[0]`".
_EXPECTED = re.compile(r"Expected (?P<expected>.+?)(?:, got `\w+`)?(?: - at `\$\.(?P<path>.+)`)?")
_MISSING = re.compile(r"Object missing required field `(?P<name>\w+)`(?: - at `\$\.(?P<path>.+)`)?")


def parse_json(body: bytes | memoryview) -> dict[str, Any]:
    """Returns the JSON object in a body.

    Raises:
      RequestError: the body is not JSON, or not an object.
    """
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):  # json also reads NaN, lone surrogates and UTF-16
        try:
            found = json.loads(bytes(body))
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the body is not JSON ({error!s:.100})") from error
    if not isinstance(found, dict):
        raise RequestError(f"the body is a JSON {type(found).__name__}; expected an object")
    return found


def convert(found: dict[str, Any], schema: type[T]) -> T:
    """Returns a JSON object as a `msgspec.Struct`; fields that the schema does not have are ignored.

    Args:
      schema: its required fields must not accept null.

    Raises:
      RequestError: a field is missing, of another type, or not Unicode text.

    >>> class Point(msgspec.Struct):
    ...     x: int
    >>> convert({"x": 1, "y": 2}, Point)
    Point(x=1)
    >>> convert({"x": True}, Point)
    Traceback (most recent call last):
    rmjax.serving.errors.RequestError: 'x' of the body is True; expected int
    """
    try:
        return msgspec.convert(found, schema)
    except UnicodeEncodeError as error:  # JSON can represent lone surrogates
        raise RequestError(f"the body has the string {error.object!r:.60}, which is not Unicode text") from error
    except msgspec.ValidationError as error:
        if missing := _MISSING.fullmatch(str(error)):
            _value_at(found, missing["path"] or "")[missing["name"]] = None
            return convert(found, schema)  # raises the error that names the expected type
        if (match := _EXPECTED.fullmatch(str(error))) is None:
            raise RequestError(f"the body is invalid: {error}; see /openapi.json") from error
        path, expected = match["path"] or "", match["expected"].replace("`", "").removesuffix(" | null")
        if (value := _value_at(found, path)) is None and not path.endswith("]"):
            parent, _, name = path.rpartition(".")
            owner = f"{parent!r} of the body" if parent else "the body"
            raise RequestError(f"{owner} has no {name!r}; expected {expected}") from error
        raise RequestError(f"{path!r} of the body is {reprlib.repr(value)}; expected {expected}") from error


def decode(body: bytes | memoryview, schema: type[T]) -> T:
    """Returns the JSON object in a body as a `msgspec.Struct`; fields that the schema does not have are ignored.

    Raises:
      RequestError: see `parse_json` and `convert`.
    """
    try:
        return msgspec.json.decode(body, type=schema)
    except (msgspec.DecodeError, ValueError, RecursionError):  # includes ValidationError
        return convert(parse_json(body), schema)  # reads more, and raises errors that name the value


def _value_at(found: Any, path: str) -> Any:
    for index, key in re.findall(r"\[(\d+)\]|(\w+)", path):
        found = found[key or int(index)]
    return found
