"""Model families that a user defines: Python files with a `FAMILY`, named by an environment variable."""

import functools
import os

from rmjax.core.errors import InputError
from rmjax.core.python_file import describe_error, load_module
from rmjax.models.families.family import Family

VARIABLE = "RMJAX_FAMILY_FILES"  # paths, separated as those of PATH


def user_families() -> dict[str, Family]:
    """Returns {model_type: family} of the files that the environment names.

    Raises:
      InputError: a file cannot be read, fails, or defines no `FAMILY`; names the line.
    """
    return {family.model_type: family for family in map(_load, filter(None, _paths()))}


def _paths() -> list[str]:
    return os.environ.get(VARIABLE, "").split(os.pathsep)


@functools.cache
def _load(path: str) -> Family:
    try:
        module = load_module(path, f"rmjax_family_{abs(hash(path))}")
    except Exception as error:  # the file is a program
        raise InputError(f"{VARIABLE}: {path}: {describe_error(error, path)}") from error
    family = getattr(module, "FAMILY", None)
    if not isinstance(family, Family):
        raise InputError(f"{VARIABLE}: {path}: defines no FAMILY of type rmjax.models.families.Family")
    return family
