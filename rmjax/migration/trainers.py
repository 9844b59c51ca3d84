"""The trainers whose configurations can be migrated, and the reading of their files."""

import pathlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from rmjax.core.errors import InputError
from rmjax.migration import command_lines, nemo_aligner, nemo_rl, openrlhf, trl, yaml_files
from rmjax.migration.keys import Migration

TRAINERS: dict[str, tuple[str, ModuleType]] = {  # {source: (name, module)}
    "nemo_aligner": ("NeMo-Aligner", nemo_aligner),
    "nemo_rl": ("NeMo-RL", nemo_rl),
    "trl": ("TRL", trl),
    "openrlhf": ("OpenRLHF", openrlhf),
}


def migrate(source: str, file: str = "", arguments: str = "", overrides: Sequence[str] = ()) -> Migration:
    """Returns the finished migration of a configuration.

    Args:
      source: a key of `TRAINERS`.
      file: YAML of NeMo; JSON, YAML or a shell script of TRL; a shell script of OpenRLHF.
      arguments: a command line of TRL or OpenRLHF, instead of `file`.
      overrides: KEY=VALUE each, of NeMo's configurations.

    Raises:
      InputError: the file cannot be read, a key is unknown, or a value cannot be taken over.
    """
    name, module = TRAINERS[source]
    if source.startswith("nemo"):
        if arguments:
            raise InputError(f"--args is for trl and openrlhf; give overrides of {name} as KEY=VALUE after the file")
        given: Mapping[str, Any] = yaml_files.read(_existing(file, name), overrides, module.WHOLE)
    else:
        if overrides:
            raise InputError(f"{overrides[0]}: {name} has no overrides; give the command line as --args")
        given = _command(name, module, file, arguments)
    migration = Migration(name, file or "--args", module.KEYS, given)
    module.convert(migration)
    migration.finish()
    return migration


def _command(name: str, module: ModuleType, file: str, arguments: str) -> Mapping[str, Any]:
    if bool(file) == bool(arguments):
        raise InputError(f"give either a file of {name} or its command line as --args")
    where, text = "--args", arguments
    if file:
        path = _existing(file, name)
        if module is trl and (values := trl.read_file(path)) is not None:
            return values
        where, text = file, command_lines.read_text(path)
    words = command_lines.find_command(text, module.PROGRAMS, where)
    aliases = getattr(module, "ALIASES", {})
    return command_lines.parse_options(words, module.KEYS, aliases, where)


def _existing(file: str, name: str) -> pathlib.Path:
    if not file:
        raise InputError(f"the file of {name} is missing; see --help")
    if not (path := pathlib.Path(file)).is_file():
        raise InputError(f"{file}: no such file")
    return path
