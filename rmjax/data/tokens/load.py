"""Load tokenized datasets: read and tokenize a source, or memory-map its tokens from the cache on disk.

A cache entry is a directory with a .npy file per array, mapped by all processes, and a JSON file for the rest.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np

from rmjax.data.records.read import SYNTHETIC, read_comparisons
from rmjax.data.records.sources import Source, Sources, as_tuple, find_sources
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.data.tokens.tokenize import DatasetOptions, DatasetReport, tokenize
from rmjax.data.tokens.tokenizer import Tokenizer

_VERSION = 5  # of the cache; raise it when the arrays or the rules that make them change
_METADATA = "dataset.json"


def load_dataset(
    sources: Sources,
    tokenizer: Tokenizer,
    options: DatasetOptions,
    *,
    split: str,
    synthetic_size: int = 0,
    cache_dir: pathlib.Path | None = None,
    progress: bool = True,
) -> tuple[TokenizedDataset, DatasetReport]:
    """Returns the dataset of a source and its report.

    Args:
      sources, split, synthetic_size: as for `read_comparisons`; the built-in data is not cached.
      cache_dir: default $RMJAX_CACHE or ~/.cache/rmjax.
      progress: show a progress bar.

    Raises:
      InputError: see `read_comparisons` and `tokenize`.
    """
    sources = as_tuple(sources)
    name = ", ".join(map(str, sources))
    cache = None if SYNTHETIC in sources else _cache_path(sources, tokenizer, options, cache_dir)
    if cache and (cached := _read_cache(cache)) is not None:
        return cached[0], dataclasses.replace(cached[1], source=name, cached=True)
    comparisons, read = read_comparisons(sources, options, split=split, synthetic_size=synthetic_size)
    dataset, report = tokenize(comparisons, tokenizer, options, name, read, progress=progress)
    if cache is None:
        return dataset, report
    try:
        _write_cache(cache, dataset, report)
    except OSError as error:  # disk full, or directory not writable: the next run tokenizes again
        report.cache_error = str(error)
    cached = _read_cache(cache)  # memory-mapped, so that the tokens in memory can be freed
    return (dataset if cached is None else cached[0]), report


def _cache_path(
    sources: tuple[str | Source, ...], tokenizer: Tokenizer, options: DatasetOptions, cache_dir: pathlib.Path | None
) -> pathlib.Path:
    digest = hashlib.sha256(json.dumps([_VERSION, tokenizer.fingerprint, dataclasses.asdict(options)]).encode())
    for source in find_sources(sources):
        digest.update(f"{source.name}={source.location}\0{source.fingerprint()}".encode())
    root = cache_dir or pathlib.Path(os.environ.get("RMJAX_CACHE", pathlib.Path.home() / ".cache" / "rmjax"))
    return root / "tokens" / digest.hexdigest()[:32]


def _write_cache(path: pathlib.Path, dataset: TokenizedDataset, report: DatasetReport) -> None:
    """Writes a cache entry atomically; of several concurrent writers, the first one's is kept. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f"{path.name}-", suffix=".part"))
    partial = temporary / "entry"  # `mkdtemp` makes a private directory; this one follows the umask
    try:
        partial.mkdir()
        metadata: dict[str, Any] = {"report": vars(report)}
        for name, value in vars(dataset).items():
            if not isinstance(value, np.ndarray):
                metadata[name] = value
                continue
            with open(partial / f"{name}.npy", "wb") as file:
                np.save(file, value)
                file.flush()
                os.fsync(file.fileno())  # else a power failure after the rename could leave zeros in the file
        (partial / _METADATA).write_text(json.dumps(metadata))
        if path.exists() and _read_cache(path) is None:
            shutil.rmtree(path, ignore_errors=True)  # damaged
        try:
            os.rename(partial, path)
        except OSError:
            if _read_cache(path) is None:
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read_cache(path: pathlib.Path) -> tuple[TokenizedDataset, DatasetReport] | None:
    """Returns a cache entry with memory-mapped arrays; None if there is none, or it is incomplete or truncated."""
    try:
        metadata = json.loads((path / _METADATA).read_text())
        report = DatasetReport(**metadata.pop("report"))
        arrays: dict[str, Any] = {file.stem: np.load(file, mmap_mode="r") for file in path.glob("*.npy")}
        names = {name: tuple(value) for name, value in metadata.items()}
        return TokenizedDataset(**(arrays | names)), report
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
