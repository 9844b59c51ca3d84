"""Command lines of trainers: in a shell script, a file of their own, or an argument."""

import itertools
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rmjax.core.errors import InputError
from rmjax.migration.keys import Key

_ASSIGNMENT = re.compile(r"(?:export\s+)?(\w+)=(\"[^\"]*\"|'[^']*'|\S*)$")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_ENDS = {";", "&&", "||", "|", ">", ">>", "2>&1", "&", "EOF", "EOL"}


def read_text(path: pathlib.Path) -> str:
    """Returns the text of a UTF-8 file; raises InputError if it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error})") from error


def find_command(text: str, programs: Sequence[str], where: str) -> list[str]:
    """Returns the arguments of a program in a shell script, or all words of a text that starts with an option.

    Lines that end in a backslash are joined, as are lines that start with options, comments left out, and variables
    replaced that the script sets before; one that is a whole word may hold several.

    Raises:
      InputError: the program is not there, a quote is open, or a variable is not set.
    """
    variables: dict[str, str] = {}

    def replace(match: re.Match) -> str:
        if (name := match[1] or match[2]) not in variables:
            raise InputError(f"{where}: the variable {match[0]} is not set there; write its value")
        return variables[name]

    lines = [line.strip() for line in re.sub(r"\\\n", " ", text).splitlines()]
    for number, line in enumerate(lines):
        if match := _ASSIGNMENT.fullmatch(line):
            if not _VARIABLE.search(match[2]) or all((a or b) in variables for a, b in _VARIABLE.findall(match[2])):
                variables[match[1]] = _VARIABLE.sub(replace, match[2].strip("\"'"))
            continue
        if not line.startswith("--") and not any(program in line for program in programs):
            continue
        words = _split(line, where)
        if line.startswith("--"):
            options = lambda other: not other or other.startswith(("--", "#"))
            words += [w for other in itertools.takewhile(options, lines[number + 1 :]) for w in _split(other, where)]
        elif (first := _first(words, programs)) is None:
            continue
        else:
            words = words[first:]
        end = next((i for i, word in enumerate(words) if word in _ENDS), len(words))
        found: list[str] = []
        for word in words[:end]:
            value = _VARIABLE.sub(replace, word)
            found += _split(value, where) if _VARIABLE.fullmatch(word) else [value]
        return found
    raise InputError(f"{where}: no command with {' or '.join(programs)} and no options (--name value) found")


def _split(line: str, where: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError as error:
        raise InputError(f"{where}: {error} in {line[:80]!r}") from error


def _first(words: Sequence[str], programs: Sequence[str]) -> int | None:
    """Returns the index after the word that names one of the programs, or None."""
    return next((i + 1 for i, word in enumerate(words) if any(program in word for program in programs)), None)


def parse_options(
    words: Sequence[str], keys: Mapping[str, Key], aliases: Mapping[str, str], where: str
) -> dict[str, Any]:
    """Returns {key: value} of `--name value`, `--name=value`, `--name a b` (lists) and `--name` (flags).

    Args:
      aliases: {other name: key}.

    Raises:
      InputError: a word is no option, or an option has no value.
    """
    values: dict[str, Any] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--"):
            raise InputError(f"{where}: {word!r} is not an option; expected --name value")
        name, equals, value = word.removeprefix("--").partition("=")
        name = aliases.get(name, aliases.get(name.replace("-", "_"), name))
        if name not in keys and name.replace("-", "_") in keys:
            name = name.replace("-", "_")
        given = [value] if equals else []
        while not equals and position < len(words) and not _is_option(words[position]):
            given.append(words[position])
            position += 1
        kind = keys[name].kind if name in keys else "any"
        if not given and kind not in ("bool", "any"):
            raise InputError(f"{where}: --{name} has no value")
        several = kind == "list" and len(given) > 1
        if len(given) > 1 and not several and name in keys:
            raise InputError(f"{where}: --{name} has the values {' '.join(given)}; expected one")
        values[name] = given if several else given[0] if given else True
    return values


def _is_option(word: str) -> bool:
    return word.startswith("--")
