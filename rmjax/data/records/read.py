"""Read data sources: the built-in synthetic data, or files, hub names and directories."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rmjax.core.config_checks import check_choice
from rmjax.core.errors import InputError
from rmjax.data.records import synthetic
from rmjax.data.records.formats import Item, parse_sources
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.sources import BadRecord, ReadReport, Source, Sources, as_tuple
from rmjax.data.schema import Comparison

SYNTHETIC = "synthetic"  # the source name of the built-in data


def iterate_items(
    sources: Sources, options: ReadOptions, report: ReadReport, *, split: str = "train", synthetic_size: int = 0
) -> Iterator[Item]:
    """Yields the first `options.limit` comparisons and bad records of sources, in input order.

    One record is held at a time, unless prompts are grouped. Items beyond the limit are not read.

    Args:
      sources: paths, globs, hub names and Sources (see `sources.find_sources`), or `synthetic` alone.
      report: is updated while reading.
      split, synthetic_size: split (`train` or `validation`) and number of comparisons of the built-in data.

    Raises:
      InputError: a source cannot be read, or a record cannot be used and `options.on_bad_record` is `error`; names the
        file, the line and the field. A comparison whose responses are all tied is a bad record, but not an error.
    """
    check_choice("data.on_bad_record", options.on_bad_record, ("error", "skip"))
    items = _iterate_all(as_tuple(sources), options, report, split, synthetic_size)
    if options.group_prompts:
        items = iter(group_by_prompt(list(items)))
    return itertools.islice(items, options.limit or None)


def _iterate_all(
    sources: Sequence[str | Source], options: ReadOptions, report: ReadReport, split: str, synthetic_size: int
) -> Iterator[Item]:
    if SYNTHETIC in sources:
        if len(sources) > 1:
            raise InputError(f"data {', '.join(map(str, sources))}: {SYNTHETIC!r} cannot be mixed with files")
        report.format = options.synthetic_format if options.format == "auto" else options.format
        report.records = synthetic_size
        yield from synthetic.comparisons(split, synthetic_size, report.format)
        return
    for source in sources:
        for item in _with_step_scale(source, options, report):
            if isinstance(item, BadRecord) and not item.tied and options.on_bad_record == "error":
                raise InputError(f"{item.where}: {item.reason} (or set data.on_bad_record to skip)")
            yield item


def read_items(
    sources: Sources, options: ReadOptions, *, split: str = "train", synthetic_size: int = 0
) -> tuple[list[Item], ReadReport]:
    """Returns the comparisons and bad records of `iterate_items`, which documents the errors, and the report."""
    report = ReadReport()
    return list(iterate_items(sources, options, report, split=split, synthetic_size=synthetic_size)), report


def iterate_comparisons(
    sources: Sources, options: ReadOptions, report: ReadReport, *, split: str = "train", synthetic_size: int = 0
) -> Iterator[Comparison]:
    """Yields the first `options.limit` comparisons; the report counts the bad records. See `iterate_items`."""
    unlimited = dataclasses.replace(options, limit=0)

    def usable() -> Iterator[Comparison]:
        for item in iterate_items(sources, unlimited, report, split=split, synthetic_size=synthetic_size):
            if isinstance(item, BadRecord):
                report.skip(item.where, item.reason, item.kind)
            else:
                yield item

    return itertools.islice(usable(), options.limit or None)


def read_comparisons(
    sources: Sources, options: ReadOptions, *, split: str = "train", synthetic_size: int = 0
) -> tuple[list[Comparison], ReadReport]:
    """Returns the comparisons of `iterate_comparisons`, and the report."""
    report = ReadReport()
    return list(iterate_comparisons(sources, options, report, split=split, synthetic_size=synthetic_size)), report


def _with_step_scale(source: str | Source, options: ReadOptions, report: ReadReport) -> Iterator[Item]:
    """Yields the items of a source; with `step_labels` auto, maps step labels from -1, 0, 1 if any of them is -1."""
    ternary: bool | None = None
    for item in parse_sources(source, options, report):
        if isinstance(item, Comparison) and item.steps and item.labels is not None and options.step_labels == "auto":
            if ternary is None:
                ternary = _is_ternary(source, options)
            if ternary:
                item = dataclasses.replace(item, labels=(item.labels + 1) / 2)
        yield item


def _is_ternary(source: str | Source, options: ReadOptions) -> bool:
    """Returns whether a step label of a source is -1.

    Raises InputError if a label between 0 and 1 is beside a -1: they are on different scales.
    """
    soft = wrong = ""
    for item in parse_sources(source, options):
        if isinstance(item, Comparison) and item.steps and item.labels is not None:
            soft = soft or (item.where if ((item.labels > 0) & (item.labels < 1)).any() else "")
            wrong = wrong or (item.where if (item.labels == -1).any() else "")
    if soft and wrong:
        raise InputError(
            f"{soft}: the step labels hold a number between 0 and 1, and those of {wrong} hold -1; "
            "expected one scale in all of a source: -1, 0 and 1, or 0 to 1"
        )
    return bool(wrong)


def group_by_prompt(items: list[Item]) -> list[Item]:
    """Joins comparisons of one response with the same prompt and attributes, in order of first appearance."""
    groups: dict[Any, list[Any]] = {}
    for i, item in enumerate(items):
        key: Any = i
        if isinstance(item, Comparison) and len(item.conversations) == 1 and item.attributes and not item.steps:
            prompt = json.dumps(item.record.get("prompt", i), sort_keys=True)  # without a prompt it is not joined
            key = (prompt, item.attributes, item.add_eos, item.subset)
        groups.setdefault(key, []).append(item)
    return [_join(group) if len(group) > 1 else group[0] for group in groups.values()]


def _join(group: list[Comparison]) -> Comparison:
    conversations = tuple(item.conversations[0] for item in group)
    labels = np.concatenate([item.labels for item in group if item.labels is not None])
    record = {"prompt": group[0].record["prompt"], "responses": [item.record.get("response") for item in group]}
    return dataclasses.replace(group[0], conversations=conversations, labels=labels, record=record)
