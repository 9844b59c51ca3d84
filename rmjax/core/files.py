"""Atomic writes, and reading of JSON files."""

import json
import os
import pathlib
from typing import Any

from rmjax.core.errors import InputError


def write_atomic(path: pathlib.Path, text: str) -> None:
    """Writes beside and renames: a reader, or a kill, never meets half a file."""
    partial = path.with_suffix(".part")
    partial.write_text(text)
    os.replace(partial, path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; raises InputError naming the file."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; a model directory needs it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: a {type(value).__name__}, not a JSON object")
    return value
