"""Load tokenized datasets: read and tokenize a source, or memory-map its tokens from the cache on disk."""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib

from rmjax.core.files import cache_directory
from rmjax.core.progress import write_line
from rmjax.data.curation.selection import Curation
from rmjax.data.records.formats.user_format import fingerprint
from rmjax.data.records.read import SYNTHETIC, iterate_comparisons
from rmjax.data.records.report import ReadReport
from rmjax.data.records.sources import Source, Sources, as_tuple, find_sources
from rmjax.data.tokens import cache
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.data.tokens.spool import TokenSpool
from rmjax.data.tokens.stream import tokenize_stream
from rmjax.data.tokens.tokenize import DatasetOptions, DatasetReport
from rmjax.data.tokens.tokenizer import Tokenizer

_VERSION = 6  # of the cache; raise it when the arrays or the rules that make them change


def load_dataset(
    sources: Sources,
    tokenizer: Tokenizer,
    options: DatasetOptions,
    *,
    split: str,
    synthetic_size: int = 0,
    curation: Curation | None = None,
    cache_dir: pathlib.Path | None = None,
    progress: bool = True,
) -> tuple[TokenizedDataset, DatasetReport]:
    """Returns the dataset of a source and its report.

    Args:
      sources, split, synthetic_size: as for `read_comparisons`; the built-in data is not cached.
      curation: chooses the comparisons; None: by the options alone.
      cache_dir: default $RMJAX_CACHE or ~/.cache/rmjax.
      progress: show a progress bar.

    Raises:
      InputError: see `read_comparisons` and `tokenize`.
    """
    sources = as_tuple(sources)
    name = ", ".join(map(str, sources))
    curation = curation or Curation(sources, options, split=split, synthetic_size=synthetic_size, progress=progress)

    def make(entry: pathlib.Path | None) -> tuple[TokenizedDataset, DatasetReport]:
        iterate = functools.partial(iterate_comparisons, sources, options, split=split, synthetic_size=synthetic_size)
        read = ReadReport()
        comparisons = iterate(read)
        if curation.is_active:  # reads the source twice: the texts of all comparisons may not fit into memory
            comparisons = itertools.compress(comparisons, curation.find_kept(iterate(ReadReport()), read))

        def estimate_total(given: int) -> int | None:
            counts = [source.count() for source in found_sources]
            known = sum(count for count in counts if count) if None not in counts else 0
            total = round(known * given / max(read.records, 1))
            return min(total, options.limit or total) or None

        with cache.partial_entry(entry) as partial:
            spool = TokenSpool(partial and partial / cache.TOKENS)
            dataset, report = tokenize_stream(
                comparisons, tokenizer, options, name, spool, estimate_total=estimate_total, progress=progress
            )
            report.merge(read)
            if entry is not None:
                try:
                    if partial is None or spool.error is not None:
                        raise spool.error or OSError(f"{entry.parent} cannot be written")
                    if [source.version() for source in found_sources] != versions:
                        raise OSError("the source changed while it was read")  # the entry's key is of another content
                    cache.write(entry, partial, dataset, report)
                except OSError as error:  # disk full, or directory not writable: the next run tokenizes again
                    report.cache_error = str(error)
        found = cache.read(entry) if entry is not None else None
        return (dataset if found is None else found[0]), report

    found_sources = [] if SYNTHETIC in sources else find_sources(sources)
    if not found_sources:
        return make(None)
    versions = [source.version() for source in found_sources]
    entry = _cache_path(found_sources, tokenizer, options, curation, cache_dir)
    found = cache.read(entry)
    if found is None:
        wait = lambda: write_line(print, f"{name}: waiting for another process that tokenizes it") if progress else None
        with cache.locked(entry, wait):
            found = cache.read(entry)
            if found is None:
                return make(entry)
    return found[0], dataclasses.replace(found[1], source=name, cached=True)


def _cache_path(
    sources: list[Source],
    tokenizer: Tokenizer,
    options: DatasetOptions,
    curation: Curation,
    cache_dir: pathlib.Path | None,
) -> pathlib.Path:
    rules = [_VERSION, tokenizer.fingerprint, dataclasses.asdict(options), fingerprint(options.format)]
    digest = hashlib.sha256(json.dumps([*rules, curation.fingerprint()]).encode())
    for source in sources:
        digest.update(f"{source.name}={source.label}\0{source.fingerprint()}".encode())
    root = cache_dir or cache_directory()
    return root / "tokens" / digest.hexdigest()[:32]
