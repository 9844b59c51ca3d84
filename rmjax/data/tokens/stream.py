"""Tokenize a stream of comparisons chunk by chunk: in bounded memory, and on all cores."""

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from rmjax.core.progress import progress_bar
from rmjax.data.schema import Comparison
from rmjax.data.tokens.dataset import TokenizedDataset, concatenate
from rmjax.data.tokens.spool import TokenSpool
from rmjax.data.tokens.tokenize import DatasetOptions, DatasetReport, tokenize
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.data.tokens.workers import map_in_processes

_CHUNK = 1024  # comparisons
_CHUNKS_ALONE = 8  # as many chunks are tokenized in this process: starting others takes seconds
_MAX_PROCESSES = 16  # that one reading process keeps busy


def tokenize_stream(
    comparisons: Iterable[Comparison],
    tokenizer: Tokenizer,
    options: DatasetOptions,
    source: str,
    spool: TokenSpool,
    *,
    estimate_total: Callable[[int], int | None],
    progress: bool = True,
) -> tuple[TokenizedDataset, DatasetReport]:
    """Returns the dataset of comparisons and the report; see `tokenize`, with which the result is equal.

    Args:
      source: name of the source, in the report and in the progress bar.
      spool: receives the tokens.
      estimate_total: returns the number of comparisons, or None, when the given number of them has been read.
      progress: show a progress bar.

    Raises:
      InputError: see `tokenize`.
      RuntimeError: a worker process was killed.
    """
    chunks = _split(comparisons)
    head = list(itertools.islice(chunks, _CHUNKS_ALONE + 1))
    work = functools.partial(_tokenize_chunk, tokenizer, options, source)
    count = min(_num_cores(), _MAX_PROCESSES)
    results: Iterator[tuple[int, TokenizedDataset, DatasetReport]]
    if len(head) <= _CHUNKS_ALONE or count == 1:
        results = map(work, itertools.chain(head, chunks))
    else:
        results = map_in_processes(work, itertools.chain(head, chunks), count)
    report, parts = DatasetReport(source=source, max_length=options.max_length), []
    start, shown = time.perf_counter(), progress and len(head) > 1
    total = estimate_total(sum(map(len, head))) if shown else None
    with progress_bar(total, f"tokenizing {source}", "comparison", disable=not shown) as bar:
        for size, dataset, part in results:
            assert isinstance(dataset.tokens, np.ndarray)
            spool.append(dataset.tokens)
            parts.append(dataclasses.replace(dataset, tokens=np.zeros(0, np.int32)))
            report.merge(part)
            bar.set_postfix_str(f"{report.tokens / (time.perf_counter() - start):,.0f} tokens/s", refresh=False)
            bar.update(size)
    if not parts:
        parts = [work([])[1]]
    return dataclasses.replace(concatenate(parts), tokens=spool.finish()), report


def _tokenize_chunk(
    tokenizer: Tokenizer, options: DatasetOptions, source: str, comparisons: Sequence[Comparison]
) -> tuple[int, TokenizedDataset, DatasetReport]:
    """Returns the number of comparisons, and their dataset and report."""
    return len(comparisons), *tokenize(comparisons, tokenizer, options, source, progress=False)


def _split(comparisons: Iterable[Comparison]) -> Iterator[list[Comparison]]:
    """Yields chunks without the records, which are not needed for tokenization, and would have to be pickled."""
    comparisons = iter(comparisons)
    while chunk := [dataclasses.replace(c, record={}) for c in itertools.islice(comparisons, _CHUNK)]:
        yield chunk


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
