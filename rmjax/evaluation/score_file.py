"""Offline scoring of a file: one JSON line per record, resumable, in one or several processes."""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, TextIO

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from rmjax.core.errors import InputError
from rmjax.core.processes import together
from rmjax.data.records.formats import iterate_comparisons
from rmjax.data.schema import Comparison
from rmjax.evaluation.pipeline import Item, RewardPipeline, plain_record, predict, prediction


def score_file(
    pipeline: RewardPipeline, source: str, output: pathlib.Path, *, best_of: bool = False
) -> tuple[int, int]:
    """Scores a file's records into `output`, one JSON line a record; continues after the lines already there.

    Several processes do it together; the first alone reads and writes `output`.

    Args:
      best_of: where a record has several responses, `best` says which one has the highest reward, from 0; of several
        attributes the merged reward, of equal rewards the first.

    Returns:
      (lines of `output`, those of them with `error`).

    Raises:
      InputError: the file cannot be read, or `output` holds lines of another input, or of another `best_of`.
    """
    items = iterate_comparisons(source, dataclasses.replace(pipeline.options, labelled=False))
    first = jax.process_index() == 0
    with together():
        done, errors = _skip_done(items, output, best_of) if first else (0, 0)
        file = _open(output) if first else open(os.devnull, "a")  # noqa: SIM115 (closed below)
    done, errors = map(int, multihost_utils.broadcast_one_to_all(np.array([done, errors])))
    with together():  # an input that cannot be read is found here
        items = itertools.islice(items, 0 if first else done, None)
        head = list(itertools.islice(items, 1))
    if done:
        print(f"{output}: continuing after the {done:,} lines already there", flush=True)
    bar = tqdm.tqdm(initial=done, desc="scoring", unit="record", dynamic_ncols=True, disable=not first)
    with bar, file:
        for chunk in predict(pipeline, itertools.chain(head, items), bar):
            lines = [prediction(item, rewards, pipeline.attributes) for item, rewards in chunk]
            for line, (item, rewards) in zip(lines, chunk, strict=True):
                if best_of and not isinstance(rewards, str) and len(item.conversations) > 1:
                    line["best"] = int(pipeline.merged(rewards).argmax())
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            file.flush()
            done += len(lines)
            errors += sum(isinstance(rewards, str) for _, rewards in chunk)
    return done, errors


def _skip_done(items: Iterator[Item], output: pathlib.Path, best_of: bool) -> tuple[int, int]:
    """Takes from `items` what `output` has lines of, and returns (lines, those with `error`)."""
    done = errors = 0
    for done, line in enumerate(_lines_there(output), 1):
        _check_same(output, done, line, next(items, None), best_of)
        errors += "rewards" not in line
    return done, errors


def _open(output: pathlib.Path) -> TextIO:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return open(output, "a", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output={output} cannot be written ({error.strerror})") from error


def _lines_there(output: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of an earlier run, after cutting a last one that a kill has torn."""
    if not output.is_file():
        return
    with open(output, "rb+") as file:
        whole = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            try:
                found = json.loads(line)
            except ValueError as error:
                raise InputError(f"{output}:{number}: no prediction ({error}); choose another --output") from error
            if not isinstance(found, dict):
                raise InputError(f"{output}:{number}: no prediction ({found!r:.40}); choose another --output")
            yield found
        file.truncate(whole)


def _check_same(output: pathlib.Path, number: int, line: dict[str, Any], item: Item | None, best_of: bool) -> None:
    own = lambda record: {key: value for key, value in record.items() if key not in ("rewards", "error", "best")}
    if item is None or own(line) != own(plain_record(item.record)):
        there = "no such record" if item is None else f"another record at {item.where}"
        raise InputError(
            f"{output}:{number}: scores a record of another input (--input has {there}); choose another "
            "--output or remove the file"
        )
    scored = isinstance(item, Comparison) and line.get("error") == item.record.get("error")  # a record may have its own
    chosen = best_of and scored and len(item.conversations) > 1
    if ("best" in line) != (chosen or "best" in item.record):
        flag = "--nobest_of" if best_of else "--best_of"
        raise InputError(f"{output}:{number}: was written with {flag}; say so again, or choose another --output")
