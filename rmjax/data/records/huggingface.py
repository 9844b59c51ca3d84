"""Datasets of the library `datasets`: directories and hub names, and their splits."""

import os
import pathlib
import re
from typing import Any

from rmjax.core.errors import InputError
from rmjax.core.files import identify

_HUB = re.compile(r"[\w.-]+/[\w.-]+(:[\w.\[\]%:+-]+)?")
_SPLIT = re.compile(r"(.+?):([\w.-]+(?:\[[^\]]*\])?)")  # a split, or a slice of one: DIR:train[:10%]


def is_hub_name(location: str) -> bool:
    """Whether a location has the form of a hub name, `OWNER/NAME` or `OWNER/NAME:SPLIT`."""
    return bool(_HUB.fullmatch(location))


def split_location(location: str) -> tuple[str, str]:
    """Returns the path and the split of `DIR:SPLIT`; (location, "") if that is not its form."""
    if (match := _SPLIT.fullmatch(location)) and os.path.isdir(match[1]) and not os.path.exists(location):
        return match[1], match[2]
    return location, ""


def load_dataset(location: str, *, hub: bool) -> Any:
    """Returns the `datasets.Dataset` of a directory or hub name, with an optional `:SPLIT`.

    Raises:
      InputError: it cannot be loaded, or several splits exist and `location` does not name one of them.
    """
    import datasets  # slow to import, and needed only here

    path, split = location.partition(":")[::2] if hub else split_location(location)
    saved = any((pathlib.Path(path) / name).exists() for name in ("state.json", "dataset_dict.json"))
    try:
        dataset = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, split=split or None)
    except Exception as error:  # `datasets` raises errors of many types
        for file in () if hub else sorted(pathlib.Path(path).rglob("*.*")):
            if what := identify(file, by_name=False):
                raise InputError(f"data {location!r}: {file}: {what}") from error
        reason = " ".join(str(error).split())[:200]
        if "Unknown split" in reason:
            raise InputError(f"data {location!r}: {reason} Give it as {path}:SPLIT") from error
        missing = "no such file, and " if hub else ""
        raise InputError(f"data {location!r}: {missing}`datasets` cannot load it ({reason})") from error
    if not isinstance(dataset, dict):
        if saved and split:
            raise InputError(f"data {location!r}: {path} is one dataset without splits; give {path}")
        return dataset
    if not split and len(dataset) == 1:
        return next(iter(dataset.values()))
    if split.partition("[")[0] not in dataset:
        raise InputError(
            f"data {location!r}: {f'there is no split {split!r}; ' if split else ''}{path} has the splits "
            f"{', '.join(sorted(dataset))}; name one, such as {path}:{min(dataset)}"
        )
    sizes = {name: len(part) for name, part in dataset.items()}
    try:
        (part,) = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
        return dataset[part.splitname].select(range(part.from_, part.to))
    except (ValueError, AssertionError, IndexError) as error:
        raise InputError(f"data {location!r}: {split!r} is not a slice of a split ({error})") from error
