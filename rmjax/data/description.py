"""Description of data sources: counts, lengths, labels, duplicates, and one comparison token by token, as text."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from rmjax.core.config import Config
from rmjax.core.errors import InputError
from rmjax.core.text import count_of
from rmjax.data.curation.duplicates import signatures
from rmjax.data.curation.report import DuplicateReport, report_duplicates
from rmjax.data.curation.selection import Curation, Reference, read_reference
from rmjax.data.records.read import read_comparisons
from rmjax.data.records.sources import Sources, as_tuple
from rmjax.data.schema import Comparison, Conversation, Tree
from rmjax.data.tokens.dataset import TokenizedDataset, align_labels, concatenate
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions, DatasetReport, tokenize
from rmjax.data.tokens.tokenizer import Tokenizer

_MAX_TOKENS = 400  # shown of a prompt or response
_SYNTHETIC_SIZE = 1000  # comparisons of the built-in data, without a limit


@dataclasses.dataclass(frozen=True)
class Part:
    """What was read of sources, or of a split of a configuration.

    Attributes:
      name: of the split; empty without a configuration.
      reports: of reading and tokenizing.
      comparisons: all that were read.
      dataset: those of them that are not left out, as tokens.
      duplicates: among the comparisons, and their overlap with evaluation sets.
    """

    name: str
    reports: tuple[DatasetReport, ...]
    comparisons: Sequence[Comparison]
    dataset: TokenizedDataset
    duplicates: DuplicateReport

    def lines(self, tokenizer: Tokenizer) -> list[str]:
        """Returns the lines about lengths, responses, labels and duplicates, and the first comparison as tokens."""
        lines = []
        if len(self.dataset):
            lengths = self.dataset.lengths
            low, median, high = np.percentile(lengths, [5, 50, 95]).astype(int).tolist()
            lines.append(
                f"unique tokens per comparison: median {median}, 5 % below {low}, 5 % above {high}; "
                f"longest {int(lengths.max())}"
            )
        lines += describe_responses(self.comparisons) + _labels(self.comparisons) + self.duplicates.lines()
        if len(self.dataset):
            lines += ["", f"{self.dataset.where(0)}, token by token (¦ between tokens, ⟦ ⟧ at readouts):"]
            lines += render(self.dataset.tree(0), tokenizer)
        return lines


@dataclasses.dataclass(frozen=True)
class DataDescription:
    """Data as training would use it; as a string, lines of text.

    Attributes:
      sources: their names.
      parts: one, or one for each split of a configuration.
      options: by which the data was read.
      template: lines about the chat template; () if no conversation was rendered.
      overlap: a line about what two sets have in common; empty: not compared.
    """

    sources: str
    parts: tuple[Part, ...]
    tokenizer: Tokenizer
    options: DatasetOptions
    template: tuple[str, ...] = ()
    overlap: str = ""

    def __str__(self) -> str:
        lines: list[str] = []
        for part in self.parts:
            reports = [line for report in part.reports for line in _describe_report(report)]
            found = part.lines(self.tokenizer)
            lines += [f"{part.name}:", *reports, *found, ""] if part.name else [*reports, *self.template, *found]
        before = self.template if any(part.name for part in self.parts) else ()
        return "\n".join([*before, *lines, *([self.overlap] if self.overlap else [])])


def describe(sources: Sources, tokenizer: Tokenizer, options: DatasetOptions, against: Sources = ()) -> DataDescription:
    """Returns the description of a source, without its bad records, and its overlap with the evaluation sets `against`.

    Raises:
      InputError: a source cannot be read.
    """
    options = dataclasses.replace(options, on_bad_record="skip")
    comparisons, read_report = read_comparisons(sources, options, synthetic_size=options.limit or _SYNTHETIC_SIZE)
    reference = read_reference(against, options, progress=True) if against else None
    dataset, report = tokenize(comparisons, tokenizer, options, _names(sources), read_report)
    template = tokenizer.describe_template() if report.rendered else []
    duplicates = _find_duplicates(comparisons, options.similarity, reference)
    part = Part("", (report,), comparisons, dataset, duplicates)
    return DataDescription(_names(sources), (part,), tokenizer, options, tuple(template))


def describe_splits(data: Config, tokenizer: Tokenizer) -> DataDescription:
    """Returns the description of both splits of the section `config.data`, read and tokenized as in training.

    Where training would stop at a record, such records are left out.

    Raises:
      InputError: a source cannot be read.
    """
    parts = []
    for split in ("train", "validation"):
        options, size = DatasetOptions.from_config(data, split), data[f"synthetic_{split}"]
        overlong = "drop" if options.on_overlong == "error" else options.on_overlong
        lenient = dataclasses.replace(options, on_bad_record="skip", on_overlong=overlong)
        reference = read_reference(options.exclude, lenient, progress=True) if options.exclude else None
        curation: Curation | None = None
        comparisons, datasets, reports = [], [], []
        for source in data[split]:
            found, read_report = read_comparisons(source, lenient, split=split, synthetic_size=size)
            curation = Curation(source, lenient, split=split, synthetic_size=size, previous=curation)
            try:
                dataset, report = load_dataset(
                    source, tokenizer, options, split=split, synthetic_size=size, curation=curation
                )
            except InputError:
                chosen = curation.choose(found, read_report) if curation.is_active else found
                dataset, report = tokenize(chosen, tokenizer, lenient, source, read_report)
            comparisons += found
            datasets.append(dataset)
            reports.append(report)
        duplicates = _find_duplicates(comparisons, options.similarity, reference)
        parts.append(Part(split, tuple(reports), comparisons, concatenate(datasets), duplicates))
    rendered = any(report.rendered for part in parts for report in part.reports)
    return DataDescription(
        _names([source for split in ("train", "validation") for source in data[split]]),
        tuple(parts),
        tokenizer,
        DatasetOptions.from_config(data, "train"),
        tuple(tokenizer.describe_template()) if rendered else (),
        _overlap("training and validation data", *(part.comparisons for part in parts)),
    )


def _describe_report(report: DatasetReport) -> list[str]:
    fields = [f"  {line}"] if (line := report.fields_line()) else []
    return [str(report), *fields, *(f"  left out: {cause}" for cause in report.causes())]


def _find_duplicates(
    comparisons: Sequence[Comparison], similarity: float, reference: Reference | None
) -> DuplicateReport:
    found = signatures(comparisons, progress="comparing texts")
    return report_duplicates(comparisons, found, similarity, reference)


def describe_responses(comparisons: Sequence[Comparison]) -> list[str]:
    """Returns a line about the responses of each comparison, and one about the preferences, if there are some."""
    counts = collections.Counter(len(c.conversations) for c in comparisons)
    lines = ["responses per comparison: " + ", ".join(f"{k}: {count:,}" for k, count in sorted(counts.items()))]
    edges = [(c, edge) for c in comparisons for edge in c.edges]
    if edges:
        size = lambda c, k: len(json.dumps(c.conversations[k], ensure_ascii=False))
        differences = [size(c, e.winner) - size(c, e.loser) for c, e in edges if e.target != 0.5]
        longer = np.mean(0.5 + 0.5 * np.sign(differences)) if differences else np.nan
        pairs = sum(len(c.conversations) * (len(c.conversations) - 1) // 2 for c in comparisons if c.edges)
        margins = np.array([edge.margin for _, edge in edges])
        lines.append(
            f"preferences: {len(edges):,}; {count_of(pairs - len(edges), 'pair')} without one; the better response "
            f"is the longer one in {longer:.1%}; margins {margins.min():g} to {margins.max():g}"
        )
    return lines


def find_labels(comparisons: Sequence[Comparison]) -> dict[str, np.ndarray]:
    """Returns the labels of each attribute as float32 [R], NaN where missing, over the comparisons that have labels."""
    labels = [(c.labels, c.attributes) for c in comparisons if c.labels is not None]
    return {
        name: np.concatenate([align_labels(table, attributes, (name,))[:, 0] for table, attributes in labels])
        for name in dict.fromkeys(name for _, attributes in labels for name in attributes)
    }


def _labels(comparisons: Sequence[Comparison]) -> list[str]:
    lines = []
    for name, values in find_labels(comparisons).items():
        known = values[~np.isnan(values)]
        line = f"label {name}: {len(known):,} of {len(values):,}"
        if len(known):
            line += f", {known.min():g} to {known.max():g}, mean {known.mean():.3f}, std {known.std():.3f}"
        lines.append(line)
    return lines


def overlap(first: Sources, second: Sources, options: DatasetOptions) -> str:
    """Returns a line with the numbers of comparisons and of single conversations that two sources have in common."""
    size = options.limit or _SYNTHETIC_SIZE
    sets = [read_comparisons(sources, options, synthetic_size=size)[0] for sources in (first, second)]
    return _overlap(f"{_names(first)} and {_names(second)}", *sets)


def _overlap(names: str, first: Sequence[Comparison], second: Sequence[Comparison]) -> str:
    comparisons = set.intersection(*(set(map(_comparison_key, found)) for found in (first, second)))
    conversations = set.intersection(*({_hash(t) for c in found for t in c.conversations} for found in (first, second)))
    counts = f"{count_of(len(comparisons), 'comparison')}, {count_of(len(conversations), 'conversation')}"
    return f"overlap of {names}: {counts}"


def _names(sources: Sources) -> str:
    return ", ".join(map(str, as_tuple(sources)))


def _comparison_key(comparison: Comparison) -> tuple[str, ...]:
    return tuple(sorted(map(_hash, comparison.conversations)))


def _hash(conversation: Conversation) -> str:
    return hashlib.sha256(json.dumps(conversation, sort_keys=True).encode()).hexdigest()


def render(tree: Tree, tokenizer: Tokenizer) -> list[str]:
    """Returns a tree as lines: the prefix, then each branch, tokens separated by ¦, readouts in ⟦ ⟧."""

    def join(tokens: np.ndarray, read: np.ndarray) -> str:
        texts = [text.replace("\n", "⏎") for text in tokenizer.token_strings(tokens)]
        texts = [f"⟦{text}⟧" if marked else text for text, marked in zip(texts, read, strict=True)]
        if len(texts) <= _MAX_TOKENS:
            return "¦".join(texts)
        shown = [*texts[: _MAX_TOKENS // 2], "…", *texts[-_MAX_TOKENS // 2 :]]
        return "¦".join(shown) + f" … {len(texts) - _MAX_TOKENS} more"

    shared, *responses = tree.read()
    lines = [f"  shared ({len(tree.prefix)}): {join(tree.prefix, shared)}"]
    for k, (tokens, read) in enumerate(zip(tree.branches, responses, strict=True)):
        lines.append(f"  response {k} ({len(tokens)}): {join(tokens, read)}")
    return lines
