"""Data arguments of the API: paths, names, and records in memory."""

import pathlib
from typing import Any

from rmjax.data.records.sources import Source, memory_source

Data = Any  # a path, hub name or `synthetic`; a list of them; a list of dicts; a datasets.Dataset; a pandas DataFrame


def to_sources(data: Data) -> list[str | Source]:
    """Returns the sources that `Data` stands for."""
    if isinstance(data, str | pathlib.Path):
        return [str(data)]
    if isinstance(data, list | tuple) and data and all(isinstance(entry, str | pathlib.Path) for entry in data):
        return [str(entry) for entry in data]
    return [memory_source(data)]
