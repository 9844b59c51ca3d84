"""Names of options in messages: as flags of programs, as arguments of functions, and configuration keys as flags."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from rmjax.core import config as configs
from rmjax.core import config_checks

_DEFAULTS = dict(configs.leaves(configs.default()))
_KEY = re.compile(rf"(?<![\w./=-])(?:config\.)?((?:{'|'.join(config_checks.BOUNDS)}|mesh)\.\w+)(?![\w/]|\.\w)( = )?")

Option = Callable[..., str]  # `flag` or `argument`


def flag(name: str, value: Any = True) -> str:
    """Returns an option as a program's flag.

    >>> flag("mesh", "tensor=2"), flag("int8")
    ('--mesh=tensor=2', '--int8')
    """
    return f"--{name}" if value is True else f"--{name}={value}"


def argument(name: str, value: Any = None) -> str:
    """Returns an option as a function's argument.

    >>> argument("mesh", "tensor=2"), argument("int8", True), argument("mesh")
    ("mesh='tensor=2'", 'int8=True', 'mesh')
    """
    return name if value is None else f"{name}={value!r}"


def rename_options(message: str, options: Mapping[str, str]) -> str:
    """Returns a message with each configuration key replaced by the flag that sets it, or by `config.` and the key.

    >>> rename_options("data.format is 'csv'; data.ties = half keeps ties", {"data.ties": "--ties"})
    "config.data.format is 'csv'; --ties=half keeps ties"
    """

    def rename(match: re.Match) -> str:
        if (key := match[1]) not in _DEFAULTS:
            return match[0]
        return options[key] + ("=" if match[2] else "") if key in options else f"config.{key}{match[2] or ''}"

    return _KEY.sub(rename, message)
