"""Offline scoring of a file: one JSON line per record, resumable, in one or several processes."""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from rmjax.core import os_errors
from rmjax.core.errors import InputError
from rmjax.core.json_text import parse
from rmjax.core.processes import synchronized_errors
from rmjax.core.progress import progress_bar
from rmjax.core.text import count_of
from rmjax.data.records.formats import Item, parse_sources
from rmjax.data.records.report import ReadReport
from rmjax.data.schema import Comparison
from rmjax.data.tokens.templates import TemplateReport
from rmjax.evaluation import pipeline as reward_pipeline
from rmjax.evaluation import score_record
from rmjax.evaluation.pipeline import RewardPipeline, json_record, prediction_line, score_chunks, template_lines


@dataclasses.dataclass
class _Counts:
    """Of the lines of a score file."""

    lines: int = 0
    errors: int = 0
    first_error: str = ""
    best: int = 0  # lines with `best`

    def add(self, line: dict[str, Any]) -> None:
        self.lines += 1
        self.best += "best" in line
        if "rewards" not in line:
            self.errors += 1
            self.first_error = self.first_error or str(line.get("error", ""))


def score_file(
    pipeline: RewardPipeline,
    source: str,
    output: pathlib.Path,
    *,
    best_of: bool = False,
    shard: tuple[int, int] = (0, 1),
    log: Callable[[str], object] = print,
) -> tuple[int, int]:
    """Writes a JSON line per record of `source` to `output`, after existing ones; returns (lines, lines with `error`).

    What determines the rewards is written to OUTPUT.run.json. A file that was left incomplete is continued from the
    beginning of a chunk, whose lines are scored again: batches, and so float rounding, are those of a whole run.

    In a multi-process run all processes score, and only the first reads and writes `output`.

    Args:
      best_of: add `best` to records with several responses: the index of the first with the highest merged reward.
      shard: (i, n): score only every n-th record, from the i-th on, counted from 0.
      log: is called with lines about existing lines, the use of the records' fields, what the chat template adds and
        leaves out, the first error, and a `best_of` without effect.

    Raises:
      InputError: the input cannot be read, or `output` has lines of another input, model, options or `best_of`.
    """
    read = ReadReport()
    items = parse_sources(source, dataclasses.replace(pipeline.options, labeled=False), read)
    items = itertools.islice(items, shard[0], None, shard[1])
    first = jax.process_index() == 0
    record = score_record.describe(pipeline) | {"shard": "{}/{}".format(*shard)}
    with synchronized_errors():
        counts, items = _skip_scored(items, output, best_of, record) if first else (_Counts(), items)
        file = _open(output, record) if first else open(os.devnull, "a")  # noqa: SIM115 (closed below)
    done, counts.errors = map(int, multihost_utils.broadcast_one_to_all(np.array([counts.lines, counts.errors])))
    counts.lines = done
    with synchronized_errors():  # raises if the input cannot be read
        items = itertools.islice(items, 0 if first else done, None)
        head = list(itertools.islice(items, 1))
    if done:
        log(f"{output}: continuing after {count_of(done, 'existing line')}")
    report = TemplateReport()
    with progress_bar(None, "scoring", "record", initial=done, disable=not first) as bar, file:
        for chunk in score_chunks(pipeline, itertools.chain(head, items), bar, report):
            for item, rewards in chunk:
                line = prediction_line(item, rewards, pipeline.attributes)
                if best_of and _has_alternatives(item) and not isinstance(rewards, str):
                    line["best"] = int(np.argmax(pipeline.merge(rewards)))
                counts.add(line)
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
    for text in filter(None, (read.fields_line(), *template_lines(pipeline, report))):
        log(text)
    if counts.errors:
        log(f"first error: {counts.first_error}")
    if best_of and not counts.best:
        log("warning: --best_of has no effect: no scored record has several responses")
    return counts.lines, counts.errors


def _has_alternatives(item: Item) -> bool:
    return isinstance(item, Comparison) and len(item.conversations) > 1


def _skip_scored(
    items: Iterator[Item], output: pathlib.Path, best_of: bool, record: dict[str, Any]
) -> tuple[_Counts, Iterator[Item]]:
    """Returns the counts of the lines of `output` that stay, and the items after theirs.

    Lines of an incomplete chunk are removed if there are more items.
    """
    if _has_lines(output):
        score_record.check(output, record)
    counts, whole = _Counts(), _Counts()
    size = 0  # bytes of the lines of whole chunks
    chunk: list[Item] = []  # items of the lines after them
    for number, (line, end) in enumerate(_existing_lines(output), 1):
        item = next(items, None)
        _check_line(f"{output}:{number}", line, item, best_of)
        counts.add(line)
        chunk.append(cast(Item, item))
        if len(chunk) == reward_pipeline.CHUNK_SIZE:
            whole, size, chunk = dataclasses.replace(counts), end, []
    more = list(itertools.islice(items, 1))
    if not (chunk and more):
        return counts, itertools.chain(more, items)
    os.truncate(output, size)
    return whole, itertools.chain(chunk, more, items)


def _has_lines(output: pathlib.Path) -> bool:
    return output.is_file() and output.stat().st_size > 0


def _open(output: pathlib.Path, record: dict[str, Any]) -> TextIO:
    """Returns the file, open for appending; if it has no lines yet, after writing the record of what will write it."""
    with os_errors.reported(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        if not _has_lines(output):
            score_record.save(output, record)
        return open(output, "a", encoding="utf-8")


def _existing_lines(output: pathlib.Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields the lines of an earlier run, and where each ends in the file.

    Then a last line that is incomplete because the run was killed is removed.
    """
    if not output.is_file():
        return
    with open(output, "rb+") as file:
        complete = 0
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                break
            complete += len(text)
            try:
                line = parse(text)
            except ValueError as error:
                raise InputError(f"{output}:{number}: not a JSON line ({error}); choose another --output") from error
            if not isinstance(line, dict):
                raise InputError(f"{output}:{number}: expected an object, found {line!r:.40}; choose another --output")
            yield line, complete
        file.truncate(complete)


def _check_line(where: str, line: dict[str, Any], item: Item | None, best_of: bool) -> None:
    """Raises InputError if an existing line is not what scoring the item with `best_of` would write."""
    own = ("rewards", "reward_std", "error", "best")
    fields = lambda record: {key: value for key, value in record.items() if key not in own}
    if item is None or fields(line) != fields(json_record(item.record)):
        expected = "no such record" if item is None else f"another record at {item.where}"
        raise InputError(
            f"{where}: scores a record of another input (--input has {expected}); choose another --output or remove "
            "this file"
        )
    scored = line.get("error") == item.record.get("error")  # the record may have a field `error` of its own
    expects_best = (best_of and scored and _has_alternatives(item)) or "best" in item.record
    if ("best" in line) != expects_best:
        flag = "--nobest_of" if best_of else "--best_of"
        raise InputError(f"{where}: was written with {flag}; use the same flag or choose another --output")
