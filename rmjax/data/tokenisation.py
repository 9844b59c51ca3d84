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
from rmjax.data import synthetic
from rmjax.data.formats import files_of, read_comparisons
from rmjax.data.packing import make_tree
from rmjax.data.schema import Comparison, Edge, Tree
from rmjax.data.tokenizer import Tokenizer

SYNTHETIC = "synthetic"
_VERSION = 2  # of the cache; raise it when the arrays or the rules that make them change


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides, besides content and tokenizer, which comparisons a source gives."""

    format: str = "auto"
    strings: str = "joined"
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
    truncated: int = 0
    tokens: int = 0
    unique_tokens: int = 0
    longest: int = 0
    cached: bool = False
    cache_fault: str = ""  # why the tokens could not be cached

    def __str__(self) -> str:
        lost = [f"{count} skipped ({reason})" for reason, count in self.skipped.items()]
        lost += [f"{self.dropped_overlong} dropped as longer than max_length"] if self.dropped_overlong else []
        lost += [f"{self.truncated} prompts truncated"] if self.truncated else []
        lost += [f"{self.blank_lines} blank lines"] if self.blank_lines else []
        lost += [f"tokens not cached ({self.cache_fault})"] if self.cache_fault else []
        shared = 1 - self.unique_tokens / max(self.tokens, 1)
        return (
            f"{self.source}: {self.kept:,} comparisons of {self.records:,} records ({self.format}"
            f"{', tokens from cache' if self.cached else ''}); {', '.join(lost) or 'nothing dropped'}; "
            f"{self.tokens:,} tokens, {self.unique_tokens:,} unique ({shared:.0%} shared), longest {self.longest:,}"
        )


@dataclasses.dataclass(frozen=True)
class TokenizedDataset:
    """Comparisons as flat arrays; comparison i owns the slices between `*_offsets[i]` and `*_offsets[i + 1]`.

    Attributes:
      tokens: int32, prefix and branches of every comparison, one after the other.
      segments: int32, lengths: of the prefix, then of each branch.
      readouts: int32 [R, 2], (branch, index within it).
      edges: float32 [E, 4], (winner, loser, margin, weight).
      ceiling: float32 [n], probability that the best judge agrees with the label; NaN where unknown.
      where: `path:line` of each comparison.
    """

    tokens: np.ndarray
    token_offsets: np.ndarray
    segments: np.ndarray
    segment_offsets: np.ndarray
    readouts: np.ndarray
    readout_offsets: np.ndarray
    edges: np.ndarray
    edge_offsets: np.ndarray
    ceiling: np.ndarray
    where: list[str]

    @classmethod
    def build(cls, trees: Sequence[Tree], ceiling: Sequence[float], where: Sequence[str]) -> "TokenizedDataset":
        """Flattens trees."""
        offsets = lambda counts: np.concatenate([[0], np.cumsum(np.asarray(list(counts), np.int64))])
        edges = [(e.winner, e.loser, e.margin, e.weight) for tree in trees for e in tree.edges]
        parts = [part for tree in trees for part in (tree.prefix, *tree.branches)]
        return cls(
            np.concatenate([np.zeros(0, np.int32), *parts]),
            offsets(tree.length for tree in trees),
            np.array([len(part) for part in parts], np.int32),
            offsets(1 + len(tree.branches) for tree in trees),
            np.array([readout for tree in trees for readout in tree.readouts], np.int32).reshape(-1, 2),
            offsets(len(tree.readouts) for tree in trees),
            np.array(edges, np.float32).reshape(-1, 4),
            offsets(len(tree.edges) for tree in trees),
            np.asarray(ceiling, np.float32),
            list(where),
        )

    def __len__(self) -> int:
        return len(self.token_offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Unique tokens of each comparison, int64 [n]."""
        return np.diff(self.token_offsets)

    @property
    def readout_counts(self) -> np.ndarray:
        """Readouts of each comparison, int64 [n]."""
        return np.diff(self.readout_offsets)

    @property
    def edge_counts(self) -> np.ndarray:
        """Edges of each comparison, int64 [n]."""
        return np.diff(self.edge_offsets)

    def tree(self, i: int) -> Tree:
        """Returns comparison i."""
        cut = lambda array, offsets: array[offsets[i] : offsets[i + 1]]
        parts = np.split(cut(self.tokens, self.token_offsets), np.cumsum(cut(self.segments, self.segment_offsets))[:-1])
        readouts = tuple((int(k), int(j)) for k, j in cut(self.readouts, self.readout_offsets))
        edges = tuple(Edge(int(w), int(r), float(m), float(s)) for w, r, m, s in cut(self.edges, self.edge_offsets))
        return Tree(parts[0], tuple(parts[1:]), readouts, edges)


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
    comparisons, texts, closed = _render(comparisons, tokenizer, options, report)
    encoded = iter(tokenizer.encode_texts(texts, closed, progress=f"tokenising {report.source}"))
    trees, ceiling, where = [], [], []
    for comparison in comparisons:
        sequences = [next(encoded) for _ in comparison.conversations]
        if not all(map(len, sequences)):
            _refuse(comparison, "a response gives no tokens", options, report)
            continue
        if any(np.array_equal(sequences[edge.winner], sequences[edge.loser]) for edge in comparison.edges):
            _refuse(comparison, "the better and the worse response give the same tokens", options, report)
            continue
        tree = make_tree(sequences, comparison.edges, comparison.labels)
        whole = sum(map(len, sequences))
        if tree.longest > options.max_length:
            if options.on_overlong == "error":
                raise InputError(f"{comparison.where}: {tree.longest} tokens, more than data.max_length = "
                                 f"{options.max_length}; raise it, or set data.on_overlong to drop")  # fmt: skip
            tree, cut = _truncate(tree, options.max_length, tokenizer) if options.on_overlong != "drop" else (None, 0)
            if tree is None:
                report.dropped_overlong += 1
                continue
            report.truncated += 1
            whole -= cut * len(tree.branches)
        report.tokens += whole
        report.unique_tokens += tree.length
        report.longest = max(report.longest, tree.longest)
        trees.append(tree)
        ceiling.append(comparison.ceiling)
        where.append(comparison.where)
    report.kept = len(trees)
    return TokenizedDataset.build(trees, ceiling, where)


def _render(
    comparisons: Sequence[Comparison], tokenizer: Tokenizer, options: Options, report: Report
) -> tuple[list[Comparison], list[str], list[bool]]:
    """Returns the comparisons that the chat template accepts, the texts of their conversations, and which to close."""
    if any(not isinstance(text, str) for comparison in comparisons for text in comparison.conversations):
        tokenizer.check_template()
    kept, texts, closed = [], [], []
    for comparison in comparisons:
        try:
            rendered = [text if isinstance(text, str) else tokenizer.render(text) for text in comparison.conversations]
        except InputError as error:
            _refuse(comparison, str(error), options, report)
            continue
        kept.append(comparison)
        texts += rendered
        closed += [comparison.close and isinstance(text, str) for text in comparison.conversations]
    return kept, texts, closed


def _refuse(comparison: Comparison, reason: str, options: Options, report: Report) -> None:
    """Raises, or counts the comparison as skipped: what `on_bad_record` says."""
    if options.on_bad_record == "error":
        raise InputError(f"{comparison.where}: {reason} (or set data.on_bad_record to skip)")
    kind = reason.split(" (")[0]
    report.skipped[kind] = report.skipped.get(kind, 0) + 1


def _truncate(tree: Tree, max_length: int, tokenizer: Tokenizer) -> tuple[Tree | None, int]:
    """Returns the tree with its prompt cut on the left, and how many tokens were cut; None if it cannot fit."""
    cut = tree.longest - max_length
    bos = tokenizer.base.bos_token_id
    kept = 1 if bos is not None and len(tree.prefix) and tree.prefix[0] == bos else 0
    if cut > len(tree.prefix) - kept:
        return None, 0
    prefix = np.concatenate([tree.prefix[:kept], tree.prefix[kept + cut :]])
    return dataclasses.replace(tree, prefix=prefix), cut


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
        report.format = "pairs"
        comparisons = synthetic.comparisons(split, synthetic_size)
        report.records = len(comparisons)
        return tokenize(_limit(comparisons, options.limit), tokenizer, options, report), report

    cache = _cache_path(sources, tokenizer, options, cache_dir)
    if (found := _read_cache(cache)) is not None:
        return found[0], dataclasses.replace(found[1], source=report.source, cached=True)
    comparisons, read = read_comparisons(sources, options.format, options.on_bad_record, strings=options.strings)
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
    for path in files_of(sources):
        digest.update(str(path).encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    home = cache_dir or pathlib.Path(os.environ.get("RMJAX_CACHE", pathlib.Path.home() / ".cache" / "rmjax"))
    return home / "tokens" / f"{digest.hexdigest()[:32]}.npz"


def _write_cache(path: pathlib.Path, dataset: TokenizedDataset, report: Report) -> None:
    names = [field.name for field in dataclasses.fields(dataset) if field.name != "where"]
    arrays = {name: getattr(dataset, name) for name in names}
    text = json.dumps({"where": dataset.where, "report": dataclasses.asdict(report)}).encode()
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
        return TokenizedDataset(**loaded, where=text["where"]), Report(**text["report"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
