"""Configuration files: loading FILE:ARGUMENT, checks of overrides, and their list for --help."""

import ast
import difflib
import inspect
import pathlib
from typing import Any

import ml_collections

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.core.python_file import describe_error, load_module


def load(reference: str) -> ml_collections.ConfigDict:
    """Returns the locked configuration of `FILE`, or of `FILE:ARGUMENT` with an argument for its `get_config`.

    Raises:
      InputError: there is no such file, it is not Python, it fails, or it does not take the argument; names the line.
    """
    path, _, argument = reference.partition(":")
    arguments = [argument] if argument else []
    try:
        get_config = getattr(_import(path), "get_config", None)
        if get_config is None:
            raise InputError("defines no function get_config()")
        try:
            inspect.signature(get_config).bind(*arguments)
        except TypeError:
            given = f"takes no argument; use {path}" if argument else f"needs an argument; use {path}:ARGUMENT"
            raise InputError(f"get_config() {given}") from None
        config = get_config(*arguments)
    except InputError as error:
        raise InputError(f"--config={reference}: {error}") from error
    except Exception as error:  # a configuration file is a program
        raise InputError(f"--config={reference}: {describe_error(error, path)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        kind = type(config).__name__
        raise InputError(f"--config={reference}: get_config() returned {kind}; expected the changed configs.default()")
    return config.lock()


def _import(path: str) -> Any:
    """Returns the module of a configuration file."""
    if not pathlib.Path(path).is_file():
        here = ", ".join(map(str, _files()))
        raise InputError(f"no such file{f'; there are {here}' if here else ''}")
    if not path.endswith(".py"):
        raise InputError("not a Python file; expected one that defines get_config(), such as configs/binary.py")
    return load_module(path, "rmjax_config")


def check_override(config: ml_collections.ConfigDict, key: str) -> None:
    """Raises InputError if `key` (section.name) cannot be overridden; names the nearest keys and those of its section.

    >>> check_override(configs.default(), "train.global_batch_size")
    Traceback (most recent call last):
      ...
    rmjax.core.errors.InputError: --config.train.global_batch_size: no such key; nearest: train.batch_size, \
evaluation.batch_size; the keys of train: batch_size, cache_features, epochs, log_every, loggers, profile, \
rows_per_device, seed, skip_non_finite, steps, trainable
    """
    keys = [key for key, _ in configs.leaves(config)]
    if key in keys:
        return
    names = lambda section: ", ".join(section.keys())
    parents: list[ml_collections.ConfigDict] = [config]
    parts = key.split(".")
    for part in parts:
        if not isinstance(section := parents[-1].get(part), ml_collections.ConfigDict):
            break
        parents.append(section)
    if len(parents) > len(parts):
        raise InputError(f"--config.{key}: {key} is a section; set one of its keys: {names(parents[-1])}")
    last = lambda name: name.rpartition(".")[2]
    likeness = lambda one, other: difflib.SequenceMatcher(None, one, other).ratio()
    score = {name: (likeness(name, key) + likeness(last(name), last(key))) / 2 for name in keys}
    threshold = max(0.6, 0.75 * max(score.values()))
    nearest = sorted((name for name in keys if score[name] > threshold), key=lambda name: -score[name])[:3]
    hint = f"nearest: {', '.join(nearest)}; " if nearest else ""
    section_name = ".".join(parts[: len(parents) - 1])
    what = f"the keys of {section_name}" if section_name else "the sections and keys"
    raise InputError(f"--config.{key}: no such key; {hint}{what}: {names(parents[-1])}")


def _files() -> list[pathlib.Path]:
    return sorted(pathlib.Path("configs").glob("*.py"))


def describe_files() -> str:
    """Returns a line per configuration file in ./configs: its path and the first line of its docstring; "" if none."""
    lines = []
    width = max((len(str(path)) for path in _files()), default=0)
    for path in _files():
        try:
            docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        except (SyntaxError, ValueError, OSError):
            docstring = "(not a valid Python file)"
        lines.append(f"  {path!s:<{width}}  {docstring.partition(chr(10))[0]}".rstrip())
    return "\n".join(["Configuration files here:", *lines]) if lines else ""
