"""Read data sources: the built-in synthetic data, or files, hub names and directories."""

import dataclasses
import json
from typing import Any

import numpy as np

from rmjax.core.config import check_choice
from rmjax.core.errors import InputError
from rmjax.data.records import synthetic
from rmjax.data.records.formats import Item, iterate_comparisons
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.sources import BadRecord, ReadReport, Sources, as_tuple
from rmjax.data.schema import Comparison

SYNTHETIC = "synthetic"  # the source name of the built-in data


def read_items(
    sources: Sources, options: ReadOptions, *, split: str = "train", synthetic_size: int = 0
) -> tuple[list[Item], ReadReport]:
    """Returns the first `options.limit` comparisons and bad records of sources, in input order, and the report.

    Args:
      sources: paths, globs, hub names and Sources (see `sources.find_sources`), or `synthetic` alone.
      split, synthetic_size: split (`train` or `validation`) and number of comparisons of the built-in data.

    Raises:
      InputError: a source cannot be read, or a record cannot be used and `options.on_bad_record` is `error`; names the
        file, the line and the field. A comparison whose responses are all tied is a bad record, but not an error.
    """
    check_choice("data.on_bad_record", options.on_bad_record, ("error", "skip"))
    sources = as_tuple(sources)
    report = ReadReport()
    items: list[Item] = []
    if SYNTHETIC in sources:
        if len(sources) > 1:
            raise InputError(f"data {', '.join(map(str, sources))}: {SYNTHETIC!r} cannot be mixed with files")
        report.format = options.synthetic_format if options.format == "auto" else options.format
        report.records = synthetic_size
        items += synthetic.comparisons(split, synthetic_size, report.format)
        return items[: options.limit or None], report
    for source in sources:
        found: list[Item] = []
        for item in iterate_comparisons(source, options, report):
            if isinstance(item, BadRecord) and not item.tied and options.on_bad_record == "error":
                raise InputError(f"{item.where}: {item.reason} (or set data.on_bad_record to skip)")
            found.append(item)
        items += normalize_step_labels(found, options)
    return (group_by_prompt(items) if options.group_prompts else items)[: options.limit or None], report


def read_comparisons(
    sources: Sources, options: ReadOptions, *, split: str = "train", synthetic_size: int = 0
) -> tuple[list[Comparison], ReadReport]:
    """Returns the first `options.limit` comparisons, and the report, which counts the bad records; see `read_items`."""
    all_items = dataclasses.replace(options, limit=0)
    items, report = read_items(sources, all_items, split=split, synthetic_size=synthetic_size)
    for item in items:
        if isinstance(item, BadRecord):
            report.skip(item.where, item.reason, item.kind)
    comparisons = [item for item in items if isinstance(item, Comparison)]
    return comparisons[: options.limit or None], report


def normalize_step_labels(items: list[Item], options: ReadOptions) -> list[Item]:
    """Returns the items of one source; with `step_labels` auto, maps step labels from -1, 0, 1 if any of them is -1."""
    steps = [(i, item) for i, item in enumerate(items) if isinstance(item, Comparison) and item.steps]
    labels = {i: item.labels for i, item in steps if item.labels is not None}
    if options.step_labels == "auto" and any(-1 in values for values in labels.values()):
        ternary = {i: dataclasses.replace(item, labels=(labels[i] + 1) / 2) for i, item in steps if i in labels}
        return [ternary.get(i, item) for i, item in enumerate(items)]
    return items


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
