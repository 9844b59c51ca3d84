"""The keys of another trainer, the values that a file gives them, and what was made of each."""

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rmjax.core import config as configs
from rmjax.core.config_checks import check
from rmjax.core.errors import InputError

_BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_DEFAULTS = dict(configs.leaves(configs.default()))
UNRESOLVED = "${"  # in a value: an interpolation that could not be resolved
# What null means for a number, by the last part of its key; null of another number with a counterpart is an error.
_NULLS = {"max_grad_norm": 0.0, "gradient_clip_val": 0.0, "warmup_steps": 0, "constant_steps": 0, "min_lr": 0.0}
_SECRETS = ("hub_token", "logger.wandb.key")  # keys whose values are not written into reports


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of another trainer.

    Attributes:
      kind: of its values: bool, int, float, str, list, or any.
      default: its value where the file does not set it.
      new: the key of rmjax that takes the value as it is; "": none, or it depends on other keys.
      reason: why it has no counterpart; "": it has one.
    """

    kind: str
    default: Any = None
    new: str = ""
    reason: str = ""


def parse_value(kind: str, value: Any) -> Any:
    """Returns the value of a key of `kind`; numbers may be texts, as YAML reads 9e-6 and as command lines give them.

    >>> parse_value("float", "9e-6"), parse_value("int", 1e6), parse_value("bool", "False")
    (9e-06, 1000000, False)

    Raises:
      ValueError, TypeError: it has another type.
    """
    if value is None or kind == "any" or (isinstance(value, str) and value.lower() in ("none", "null")):
        return None if isinstance(value, str) and kind != "any" else value
    if kind == "list":
        if isinstance(value, str):
            return [part for part in value.replace(",", " ").split() if part]
        if isinstance(value, list):
            return value
    elif kind == "bool":
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _BOOLS:
            return _BOOLS[value.lower()]
    elif isinstance(value, bool | list | dict):
        pass
    elif kind == "str":
        return str(value)
    elif (number := float(value)) == number:
        if kind == "float":
            return number
        if number.is_integer():
            return int(number)
    raise ValueError


class Migration:
    """A configuration of another trainer on its way to one of rmjax.

    Args:
      trainer: its name, for messages.
      where: the file, or the option, that the values come from.
      keys: all of the trainer's keys.
      given: the values that are set.

    Attributes:
      taken: (old key, value, whether it is the default, {new key: value}) of each key with a counterpart.
      left: (old key, value, reason) of each key that is set and has none.
      differences: what the other trainer does otherwise.

    Raises:
      InputError: a key is unknown, or its value has another type.
    """

    def __init__(self, trainer: str, where: str, keys: Mapping[str, Key], given: Mapping[str, Any]):
        self.trainer, self.where, self.keys = trainer, where, keys
        self.taken: list[tuple[str, Any, bool, dict[str, Any]]] = []
        self.left: list[tuple[str, Any, str]] = []
        self.differences: list[str] = []
        self.config: dict[str, Any] = {}
        self.given: dict[str, Any] = {}
        self._done: set[str] = set()
        for name, value in given.items():
            self.given[name] = self._checked(name, value)

    def _checked(self, name: str, value: Any) -> Any:
        if (key := self.keys.get(name)) is None:
            near = difflib.get_close_matches(name, self.keys, 3, 0.6)
            last = name.rpartition(".")[2]
            near = near or [other for other in self.keys if other.rpartition(".")[2] == last][:3]
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InputError(
                f"{self.where}: {name} is not a key of {self.trainer} that rmjax knows{hint}; correct or remove it"
            )
        if isinstance(value, str) and UNRESOLVED in value:
            if key.reason:
                return value
            raise InputError(f"{self.where}: {name} is {value}, which rmjax cannot resolve; write its value there")
        try:
            parsed = parse_value(key.kind, value)
            if parsed is None and key.kind in ("int", "float") and key.default is not None and not key.reason:
                return _NULLS[name.rpartition(".")[2]]
            return parsed
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{self.where}: {name} is {value!r}; expected {_KINDS[key.kind]}") from None

    def __getitem__(self, name: str) -> Any:
        """Returns the value of a key, its default if it is not set."""
        return self.given.get(name, self.keys[name].default)

    def take(self, name: str, /, **new: Any) -> None:
        """Takes a key over as keys of rmjax, `section__key=value`."""
        values = {key.replace("__", "."): _as_default(key.replace("__", "."), value) for key, value in new.items()}
        self.config |= values
        self.taken.append((name, self._shown(name), name not in self.given, values))
        self._done.add(name)

    def leave(self, name: str, reason: str) -> None:
        """Reports a key that is set without a counterpart."""
        if name in self.given and name not in self._done:
            self.left.append((name, self._shown(name), reason))
        self._done.add(name)

    def _shown(self, name: str) -> Any:
        return "(not shown)" if name in _SECRETS and self[name] else self[name]

    def choose(self, name: str, choices: Mapping[str, Any]) -> Any:
        """Returns what `choices` has for the value of a key.

        Raises:
          InputError: it has nothing, so that a run of rmjax would be another one.
        """
        if str(self[name]) not in choices:
            raise InputError(f"{self.where}: {name} is {self[name]!r}; rmjax has {', '.join(choices)}")
        return choices[str(self[name])]

    def finish(self) -> None:
        """Handles the keys that map one to one and those without a counterpart, and checks the configuration.

        Raises:
          InputError: a value is out of its range.
        """
        for name, key in self.keys.items():
            if name in self._done:
                continue
            if key.new and self[name] is not None:
                self.take(name, **{key.new.replace(".", "__"): self[name]})
            elif key.reason:
                self.leave(name, key.reason)
        if missed := [name for name in self.given if name not in self._done and self.given[name] is not None]:
            raise AssertionError(f"{missed[0]} was neither taken over nor reported")
        config = self.make_config()
        for name in ("path", "train", "validation"):
            section = config.model if name == "path" else config.data
            if section[name] in (configs.REQUIRED, (configs.REQUIRED,)):
                section[name] = "x" if name == "path" else ("x",)
        try:
            check(config)
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from error

    def make_config(self) -> configs.Config:
        """Returns the configuration."""
        config = configs.default()
        for name, value in self.changed().items():
            section, _, key = name.rpartition(".")
            (config[section] if section else config)[key] = value
        return config

    def changed(self) -> dict[str, Any]:
        """Returns the keys of rmjax that differ from their defaults."""
        return {name: value for name, value in self.config.items() if value != _DEFAULTS[name]}


_KINDS = {"bool": "true or false", "int": "an integer", "float": "a number", "str": "a text", "list": "a list"}


def _as_default(name: str, value: Any) -> Any:
    """Returns a value with the type of the default of its key."""
    default = _DEFAULTS[name]
    if isinstance(default, tuple):
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    return float(value) if isinstance(default, float) else value


def expand(rows: Mapping[str, tuple]) -> dict[str, Key]:
    """Returns {name: Key} of rows {names separated by spaces: fields of a Key}."""
    return {name: Key(*fields) for names, fields in rows.items() for name in names.split()}


def show(value: Any) -> str:
    """Returns a value as it is written in reports."""
    return value if isinstance(value, str) and value else json.dumps(value, default=str)


def listed(values: Sequence[Any] | str | None) -> list[str]:
    """Returns one text or several as a list."""
    return [values] if isinstance(values, str) else [str(value) for value in values or ()]
