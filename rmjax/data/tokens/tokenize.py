"""Comparisons to a tokenized dataset: options, length limits, and the report of what was left out."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rmjax.core.config import Config
from rmjax.core.config_checks import check_choice
from rmjax.core.errors import InputError
from rmjax.core.text import count_of
from rmjax.data.records.options import DATA_DEFAULTS, ReadOptions
from rmjax.data.records.sources import ReadReport
from rmjax.data.schema import Comparison, Tree
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.data.tokens.rendering import Overlong, make_trees, place_readouts, separate_prompt
from rmjax.data.tokens.templates import TemplateReport
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.data.tokens.trees import make_tree


@dataclasses.dataclass(frozen=True)
class DatasetOptions(ReadOptions):
    """Options that, with the source's content and the tokenizer, determine a dataset; see the section `data`."""

    max_length: int = DATA_DEFAULTS.max_length
    on_overlong: str = DATA_DEFAULTS.on_overlong

    @classmethod
    def from_config(cls, data: Config, split: str) -> "DatasetOptions":
        """Returns the options of the section `config.data` for a split, `train` or `validation`."""
        names = {field.name for field in dataclasses.fields(cls)} & set(data.keys())
        options = cls(**{name: data[name] for name in names}, limit=data[f"{split}_limit"])
        return options if split == "train" else dataclasses.replace(options, exclude=(), duplicates="keep")


_COUNTS = (
    "kept", "dropped_overlong", "dropped_responses", "truncated", "special_token_texts", "tokens", "unique_tokens"
)  # fmt: skip


@dataclasses.dataclass
class DatasetReport(ReadReport, TemplateReport):
    """Numbers of comparisons read, kept, dropped, truncated and skipped; printed for every source."""

    source: str = ""
    kept: int = 0
    max_length: int = 0
    dropped_overlong: int = 0
    first_overlong: str = ""  # `path:line` of the first one, and its length
    first_overlong_length: int = 0
    first_overlong_unit: str = "token"  # or `character`, if it was not tokenized
    dropped_responses: int = 0
    truncated: int = 0
    special_token_texts: int = 0
    tokens: int = 0
    unique_tokens: int = 0
    longest: int = 0
    cached: bool = False
    cache_error: str = ""

    def merge(self, other: ReadReport) -> None:
        """Adds the report of later comparisons, or of reading."""
        super().merge(other)
        if isinstance(other, DatasetReport):
            self.merge_left_out(other)
            if not self.dropped_overlong:
                self.first_overlong, self.first_overlong_length = other.first_overlong, other.first_overlong_length
                self.first_overlong_unit = other.first_overlong_unit
            for name in _COUNTS:
                setattr(self, name, getattr(self, name) + getattr(other, name))
            self.longest = max(self.longest, other.longest)

    def causes(self) -> list[str]:
        """Returns why comparisons were left out, with count and first example of each cause; the most frequent first.

        >>> report = DatasetReport(max_length=8, dropped_overlong=2, first_overlong="a:3", first_overlong_length=11)
        >>> report.causes()
        ['2 comparisons longer than max_length = 8 (first: a:3, 11 tokens)']
        """
        found = [
            (count, f"{count_of(count, 'record')} skipped (first: {self.first_skipped.get(kind, kind)})")
            for kind, count in self.skipped.items()
        ]
        if self.dropped_overlong:
            length = count_of(self.first_overlong_length, self.first_overlong_unit)
            first = f"first: {self.first_overlong}, {length}"
            dropped = f"{count_of(self.dropped_overlong, 'comparison')} longer than max_length = {self.max_length}"
            found.append((self.dropped_overlong, f"{dropped} ({first})"))
        return [text for _, text in sorted(found, key=lambda cause: -cause[0])]

    def __str__(self) -> str:
        losses = [f"{count:,} skipped ({reason})" for reason, count in self.skipped.items()]
        if self.dropped_overlong:
            losses.append(f"{self.dropped_overlong:,} dropped as longer than max_length = {self.max_length}")
        for count, noun, what in (
            (self.dropped_responses, "single response", "dropped"),
            (self.truncated, "prompt", "truncated"),
            (self.special_token_texts, "text", "with special tokens"),
        ):
            losses += [f"{count_of(count, noun)} {what}"] if count else []
        losses += [count_of(self.blank, "blank line")] if self.blank else []
        losses += [text] if (text := self.describe_left_out()) else []
        losses += [f"tokens not cached ({self.cache_error})"] if self.cache_error else []
        shared = 1 - self.unique_tokens / self.tokens if self.tokens else 0.0
        return (
            f"{self.source}: {count_of(self.kept, 'comparison')} of {count_of(self.records, 'record')} ({self.format}"
            f"{', tokens from cache' if self.cached else ''}); {', '.join(losses) or 'nothing dropped'}; "
            f"{count_of(self.tokens, 'token')}, {self.unique_tokens:,} unique ({shared:.0%} shared), "
            f"longest {self.longest:,}"
        )


def tokenize(
    comparisons: Sequence[Comparison],
    tokenizer: Tokenizer,
    options: DatasetOptions,
    source: str,
    read: ReadReport | None = None,
    *,
    progress: bool = True,
) -> tuple[TokenizedDataset, DatasetReport]:
    """Returns the dataset of comparisons within the length limit, and the report, which extends `read`.

    `max_length` bounds the longest single conversation of a comparison; the tree that shares its prompt may be longer.
    `truncate_prompt` removes tokens from the left of the shared prompt, after a BOS; where the responses alone are too
    long the comparison is dropped, and counted. Otherwise, conversations that are too long by their characters alone
    are not tokenized.

    Raises:
      InputError: a comparison is too long and `on_overlong` is `error`; or a response has no tokens, the better and the
        worse response have the same tokens, or the chat template fails, and `on_bad_record` is `error`.
    """
    check_choice("data.on_overlong", options.on_overlong, ("drop", "truncate_prompt", "error"))
    conversations = [conversation for comparison in comparisons for conversation in comparison.conversations]
    texts = [conversation for conversation in conversations if isinstance(conversation, str)]
    if len(texts) < len(conversations):
        tokenizer.check_template()
    report = DatasetReport(**vars(read or ReadReport()), source=source, max_length=options.max_length)
    report.special_token_texts = sum(tokenizer.find_special_token(text) is not None for text in texts)
    attributes = tuple(dict.fromkeys(name for comparison in comparisons for name in comparison.attributes))
    trees, kept = [], []
    title = f"tokenizing {source}" if progress else ""
    bound = 0 if options.on_overlong == "truncate_prompt" else options.max_length
    made = make_trees(comparisons, tokenizer, title, report, bound)
    for comparison, tree in zip(comparisons, made, strict=True):
        if isinstance(tree, str):
            if options.on_bad_record == "error":
                raise InputError(f"{comparison.where}: {tree} (or set data.on_bad_record to skip)")
            report.skip(comparison.where, tree, tree.split(" (")[0])
            continue
        fitted = _limit_length(tree, comparison, tokenizer, options, report)
        if fitted is None:
            if not report.dropped_overlong:
                length, unit = (tree.characters, "character") if isinstance(tree, Overlong) else (tree.longest, "token")
                report.first_overlong, report.first_overlong_length = comparison.where, length
                report.first_overlong_unit = unit
            report.dropped_overlong += 1
            continue
        report.tokens += len(fitted.prefix) * len(fitted.branches) + sum(map(len, fitted.branches))
        report.unique_tokens += fitted.length
        report.longest = max(report.longest, fitted.longest)
        trees.append(fitted)
        kept.append(comparison)
    report.kept = len(trees)
    return TokenizedDataset.build(kept, trees, attributes), report


def _limit_length(
    tree: Tree | Overlong, comparison: Comparison, tokenizer: Tokenizer, options: DatasetOptions, report: DatasetReport
) -> Tree | None:
    """Returns the tree within `max_length`, truncated if needed; None if it has to be dropped."""
    if isinstance(tree, Tree) and tree.longest <= options.max_length:
        return tree
    if options.on_overlong == "error":
        found = f"{tree.characters:,} characters" if isinstance(tree, Overlong) else f"{tree.longest} tokens"
        raise InputError(
            f"{comparison.where}: {found}, more than data.max_length = {options.max_length} tokens; raise it, or set "
            "data.on_overlong to drop",
            page="docs/troubleshooting.md#conversations-are-too-long",
        )
    if isinstance(tree, Overlong):
        fitted = tree.rest and _limit_length(tree.rest, comparison, tokenizer, options, report)
        report.dropped_responses += tree.left_out if fitted else 0
        return fitted
    if options.on_overlong == "drop":
        return _drop_overlong_responses(tree, options.max_length, report, tokenizer)
    truncated = _truncate_prompt(separate_prompt(comparison, tree, tokenizer), options.max_length, tokenizer)
    placed = truncated and place_readouts(comparison, truncated, tokenizer)
    fitted = placed if isinstance(placed, Tree) else None
    report.truncated += fitted is not None
    return fitted


def _drop_overlong_responses(tree: Tree, max_length: int, report: DatasetReport, tokenizer: Tokenizer) -> Tree | None:
    """Returns the tree without its overlong responses, if others remain and no edge compares them; else None."""
    short = [k for k, branch in enumerate(tree.branches) if len(tree.prefix) + len(branch) <= max_length]
    if tree.edges or not short or len(tree.readouts) != len(tree.branches):
        return None
    report.dropped_responses += len(tree.branches) - len(short)
    sequences = [np.concatenate([tree.prefix, tree.branches[k]]) for k in short]
    kept = make_tree(sequences, labels=None if tree.labels is None else tree.labels[short])
    return tokenizer.readout_place.place(kept)


def _truncate_prompt(tree: Tree, max_length: int, tokenizer: Tokenizer) -> Tree | None:
    """Returns the tree with its prompt truncated on the left, a BOS kept; None if the responses alone are too long."""
    excess = tree.longest - max_length
    bos = tokenizer.base.bos_token_id
    start = 1 if bos is not None and len(tree.prefix) and tree.prefix[0] == bos else 0
    if excess > len(tree.prefix) - start:
        return None
    return dataclasses.replace(tree, prefix=np.delete(tree.prefix, slice(start, start + excess)))
