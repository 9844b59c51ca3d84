"""Comparisons as tokens: made once, kept as flat arrays, cached on disk."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Sequence

import numpy as np

from rmjax.core.config import check_choice
from rmjax.core.errors import InputError
from rmjax.data.records import synthetic
from rmjax.data.records.formats import read_comparisons
from rmjax.data.records.parsers import ReadOptions
from rmjax.data.records.sources import find_sources
from rmjax.data.schema import Comparison, Tree
from rmjax.data.tokens.dataset import TokenizedDataset, align_labels
from rmjax.data.tokens.rendering import make_trees, split_prompt
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.data.tokens.trees import make_tree

SYNTHETIC = "synthetic"
_VERSION = 3  # of the cache; raise it when the arrays or the rules that make them change


@dataclasses.dataclass(frozen=True)
class Options(ReadOptions):
    """What decides, besides content and tokenizer, which comparisons a source gives."""

    group_prompts: bool = False
    max_length: int = 1024
    on_overlong: str = "drop"
    on_bad_record: str = "error"
    limit: int = 0


@dataclasses.dataclass
class Report:
    """What became of a source, always shown: nothing is dropped, truncated or skipped silently."""

    source: str
    format: str = ""
    records: int = 0
    kept: int = 0
    blank_lines: int = 0
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped_overlong: int = 0
    dropped_responses: int = 0
    truncated: int = 0
    control_tokens: int = 0
    tokens: int = 0
    unique_tokens: int = 0
    longest: int = 0
    cached: bool = False
    cache_fault: str = ""  # why the tokens could not be cached

    def __str__(self) -> str:
        lost = [f"{count} skipped ({reason})" for reason, count in self.skipped.items()]
        lost += [f"{self.dropped_overlong} dropped as longer than max_length"] if self.dropped_overlong else []
        lost += [f"{self.dropped_responses} single responses dropped"] if self.dropped_responses else []
        lost += [f"{self.truncated} prompts truncated"] if self.truncated else []
        lost += [f"{self.control_tokens} texts hold control tokens"] if self.control_tokens else []
        lost += [f"{self.blank_lines} blank lines"] if self.blank_lines else []
        lost += [f"tokens not cached ({self.cache_fault})"] if self.cache_fault else []
        shared = 1 - self.unique_tokens / max(self.tokens, 1)
        return (
            f"{self.source}: {self.kept:,} comparisons of {self.records:,} records ({self.format}"
            f"{', tokens from cache' if self.cached else ''}); {', '.join(lost) or 'nothing dropped'}; "
            f"{self.tokens:,} tokens, {self.unique_tokens:,} unique ({shared:.0%} shared), longest {self.longest:,}"
        )


def tokenize(
    comparisons: Sequence[Comparison], tokenizer: Tokenizer, options: Options, report: Report
) -> TokenizedDataset:
    """Tokenises comparisons and applies the rule for overlong ones; fills `report`.

    `max_length` bounds the longest single conversation of a comparison; the tree that shares its prompt may be longer.
    `truncate_prompt` takes tokens from the left of the shared prompt, after a BOS; where the responses alone are too
    long the comparison is dropped, and counted.

    Raises:
      InputError: a comparison is overlong and `on_overlong` is `error`; or it gives no tokens, or equal ones for the
        better and the worse response, or the chat template refuses it, and `on_bad_record` is `error`.
    """
    check_choice("data.on_overlong", options.on_overlong, ("drop", "truncate_prompt", "error"))
    if any(not isinstance(text, str) for comparison in comparisons for text in comparison.conversations):
        tokenizer.check_template()
    attributes = tuple(dict.fromkeys(name for comparison in comparisons for name in comparison.attributes))
    report.control_tokens = sum(
        tokenizer.control_token(text) is not None
        for c in comparisons
        for text in c.conversations
        if isinstance(text, str)
    )
    trees, kept = [], []
    for comparison, tree in zip(
        comparisons, make_trees(comparisons, tokenizer, f"tokenising {report.source}"), strict=True
    ):
        if isinstance(tree, str):
            _refuse(comparison, tree, options, report)
            continue
        if tree.longest > options.max_length:
            if options.on_overlong == "error":
                raise InputError(
                    f"{comparison.where}: {tree.longest} tokens, more than data.max_length = "
                    f"{options.max_length}; raise it, or set data.on_overlong to drop"
                )
            if options.on_overlong == "drop":
                tree = _without_overlong(tree, options.max_length, report)
            else:
                tree = _truncate(split_prompt(comparison, tree, tokenizer), options.max_length, tokenizer)
                report.truncated += tree is not None
            if tree is None:
                report.dropped_overlong += 1
                continue
        report.tokens += len(tree.prefix) * len(tree.branches) + sum(map(len, tree.branches))
        report.unique_tokens += tree.length
        report.longest = max(report.longest, tree.longest)
        if comparison.attributes not in ((), attributes):
            tree = dataclasses.replace(tree, labels=align_labels(tree.labels, comparison.attributes, attributes))
        trees.append(tree)
        kept.append(comparison)
    report.kept = len(trees)
    return TokenizedDataset.build(
        trees, [c.ceiling for c in kept], [c.where for c in kept], attributes, [c.subset for c in kept]
    )


def _refuse(comparison: Comparison, reason: str, options: Options, report: Report) -> None:
    """Raises, or counts the comparison as skipped: what `on_bad_record` says."""
    if options.on_bad_record == "error":
        raise InputError(f"{comparison.where}: {reason} (or set data.on_bad_record to skip)")
    kind = reason.split(" (")[0]
    report.skipped[kind] = report.skipped.get(kind, 0) + 1


def _without_overlong(tree: Tree, max_length: int, report: Report) -> Tree | None:
    """Returns the tree without its overlong responses, if others remain and nothing compares them; else None."""
    short = [k for k, branch in enumerate(tree.branches) if len(tree.prefix) + len(branch) <= max_length]
    if tree.edges or not short or len(tree.readouts) != len(tree.branches):
        return None
    report.dropped_responses += len(tree.branches) - len(short)
    sequences = [np.concatenate([tree.prefix, tree.branches[k]]) for k in short]
    return make_tree(sequences, labels=None if tree.labels is None else tree.labels[short])


def _truncate(tree: Tree, max_length: int, tokenizer: Tokenizer) -> Tree | None:
    """Returns the tree with its prompt cut on the left; None if it cannot fit."""
    cut = tree.longest - max_length
    bos = tokenizer.base.bos_token_id
    kept = 1 if bos is not None and len(tree.prefix) and tree.prefix[0] == bos else 0
    if cut > len(tree.prefix) - kept:
        return None
    prefix = np.concatenate([tree.prefix[:kept], tree.prefix[kept + cut :]])
    return dataclasses.replace(tree, prefix=prefix)


def load_dataset(
    sources: Sequence[str],
    tokenizer: Tokenizer,
    options: Options,
    *,
    split: str,
    synthetic_size: int = 0,
    cache_dir: pathlib.Path | None = None,
) -> tuple[TokenizedDataset, Report]:
    """Reads and tokenises a source, or takes its tokens from the cache.

    Args:
      sources: paths and globs, or `synthetic` alone.
      split: `train` or `validation`: which built-in comparisons are meant.
      cache_dir: default $RMJAX_CACHE or ~/.cache/rmjax. The built-in data is made anew each time.

    Raises:
      InputError: see `read_comparisons` and `tokenize`.
    """
    sources = (sources,) if isinstance(sources, str) else tuple(sources)
    report = Report(", ".join(sources))
    if SYNTHETIC in sources:
        if sources != (SYNTHETIC,):
            raise InputError(f"data {sources}: 'synthetic' cannot be mixed with files")
        report.format = "pairs" if options.format == "auto" else options.format
        comparisons = synthetic.comparisons(split, synthetic_size, options.format)
        report.records = len(comparisons)
        return tokenize(_limit(comparisons, options.limit), tokenizer, options, report), report

    cache = _cache_path(sources, tokenizer, options, cache_dir)
    if (found := _read_cache(cache)) is not None:
        return found[0], dataclasses.replace(found[1], source=report.source, cached=True)
    comparisons, read = read_comparisons(sources, options, options.on_bad_record, group_prompts=options.group_prompts)
    report.format, report.records, report.blank_lines = read.format, read.records, read.blank
    report.skipped = dict(collections.Counter(read.skipped))
    dataset = tokenize(_limit(comparisons, options.limit), tokenizer, options, report)
    try:
        _write_cache(cache, dataset, report)
    except OSError as error:  # a full disk, a home that cannot be written: slower next time, not wrong
        report.cache_fault = str(error)
    return dataset, report


def _limit(comparisons: list[Comparison], limit: int) -> list[Comparison]:
    return comparisons[:limit] if limit else comparisons


def _cache_path(
    sources: tuple[str, ...], tokenizer: Tokenizer, options: Options, cache_dir: pathlib.Path | None
) -> pathlib.Path:
    digest = hashlib.sha256(json.dumps([_VERSION, tokenizer.fingerprint, dataclasses.asdict(options)]).encode())
    for source in find_sources(sources):
        digest.update(f"{source.name}={source.place}\0{source.fingerprint()}".encode())
    home = cache_dir or pathlib.Path(os.environ.get("RMJAX_CACHE", pathlib.Path.home() / ".cache" / "rmjax"))
    return home / "tokens" / f"{digest.hexdigest()[:32]}.npz"


def _write_cache(path: pathlib.Path, dataset: TokenizedDataset, report: Report) -> None:
    values = vars(dataset)
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    lists = {name: value for name, value in values.items() if name not in arrays}
    text = json.dumps({"lists": lists, "report": dataclasses.asdict(report)}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed: a reader never sees half a file, nor two writers' halves.
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        np.savez(file, text=np.frombuffer(text, np.uint8), **arrays)
    os.replace(file.name, path)


def _read_cache(path: pathlib.Path) -> tuple[TokenizedDataset, Report] | None:
    """Returns what the cache holds; None if there is none or it is damaged (it is then made again)."""
    try:
        with np.load(path) as arrays:
            loaded = dict(arrays)
        text = json.loads(loaded.pop("text").tobytes())
        lists = text["lists"] | {"attributes": tuple(text["lists"]["attributes"])}
        return TokenizedDataset(**loaded, **lists), Report(**text["report"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
