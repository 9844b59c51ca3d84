"""The configuration file that a migration writes, with the list of what became of each key."""

import textwrap
from typing import Any

from rmjax.core import config as configs
from rmjax.migration.keys import Migration, show

_WIDTH = 116  # of the lines of the list
_DEFAULTS = dict(configs.leaves(configs.default()))


def report(migration: Migration) -> str:
    """Returns the list of the keys that were taken over, of those without a counterpart, and of the differences."""
    parts = []
    if taken := [_taken(*row) for row in migration.taken]:
        parts.append("Taken over (old key = value -> rmjax):\n" + "\n".join(map(_item, taken)))
    if migration.left:
        rows = [f"{name} = {show(value)}: {reason}" for name, value, reason in migration.left]
        parts.append("Without a counterpart:\n" + "\n".join(map(_item, rows)))
    if migration.differences:
        title = f"What {migration.trainer} does otherwise:\n"
        parts.append(title + "\n".join(map(_item, migration.differences)))
    return "\n\n".join(parts)


def _taken(name: str, value: Any, default: bool, new: dict[str, Any]) -> str:
    targets = ", ".join(f"{key} = {_literal(found)}" for key, found in new.items())
    same = " (rmjax's default)" if all(found == _DEFAULTS[key] for key, found in new.items()) else ""
    return f"{name} = {show(value)}{' (default)' if default else ''} -> {targets}{same}"


def _item(text: str) -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent="* ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def render(migration: Migration, output: str) -> str:
    """Returns the text of a configuration file; `output` is its name in the command that it states."""
    title = f"Migrated from {migration.trainer}: {migration.where}."
    docstring = f"{title}\n\npython -m rmjax.train --config={output}\n\n{report(migration)}\n"
    docstring = docstring.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    lines = [f"    config.{name} = {_literal(value)}" for name, value in migration.changed().items()]
    return (
        f'"""{docstring}"""\n\nfrom rmjax.core import config as configs\n\n\ndef get_config(arg: str = ""):\n'
        '    """Returns the configuration."""\n    configs.check_argument(arg)\n    config = configs.default()\n'
        + "".join(f"{line}\n" for line in lines)
        + "    return config\n"
    )


def _literal(value: Any) -> str:
    """Returns a value as Python."""
    if value == configs.REQUIRED:
        return "configs.REQUIRED"
    if value == (configs.REQUIRED,):
        return "(configs.REQUIRED,)"
    return repr(value)
