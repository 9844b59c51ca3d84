"""Atomic writes, and reading of JSON files."""

import json
import os
import pathlib
from typing import Any

from rmjax.core.errors import InputError


def write_atomic(path: pathlib.Path, text: str) -> None:
    """Writes to a temporary file beside `path` and renames it, so that no reader sees an incomplete file."""
    partial = path.with_suffix(".part")
    partial.write_text(text)
    os.replace(partial, path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object in a file; raises InputError naming the file."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; a model directory must have it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); copy the file again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: the JSON value is a {type(value).__name__}; expected an object")
    return value
