"""Configuration keys in messages, as the programs' flags that set them."""

import re
from collections.abc import Mapping

from rmjax.core import config as configs
from rmjax.core import config_checks

_DEFAULTS = dict(configs.leaves(configs.default()))
_KEY = re.compile(rf"(?<![\w./=-])(?:config\.)?((?:{'|'.join(config_checks.BOUNDS)}|mesh)\.\w+)(?![\w/]|\.\w)( = )?")


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
