"""Report on data, as text and as an HTML page: counts, histograms, labels, duplicates, examples as tokens."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmjax.core import os_errors, report
from rmjax.core.files import write_atomic
from rmjax.core.sections import Cell, Example, Figure, Section, Table
from rmjax.core.text import count_of, shorten
from rmjax.data.curation.duplicates import response_texts
from rmjax.data.curation.report import DuplicateReport
from rmjax.data.description import DataDescription, Part, describe_responses, find_labels, render
from rmjax.data.schema import Comparison, Tree
from rmjax.data.tokens.rendering import separate_prompt
from rmjax.data.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 40  # of a histogram
_EXAMPLES = 4  # comparisons that are shown
_FIGURES = 12  # attributes with a histogram; the table has all
_LEVELS = (5, 25, 50, 75, 95)  # percentiles
_SEPARATED = 2000  # single responses whose prompt is counted: each is tokenized again


@dataclasses.dataclass(frozen=True)
class Description:
    """What is in data: as text in a terminal, with histograms and examples in a notebook.

    Attributes:
      text: what `python -m rmjax.describe` prints.
      title: the sources.
      sections: of the HTML page.
      notes: paragraphs before the sections.
    """

    text: str
    title: str = dataclasses.field(repr=False)
    sections: tuple[Section, ...] = dataclasses.field(repr=False)
    notes: tuple[str, ...] = dataclasses.field(default=(), repr=False)

    @classmethod
    def of(cls, found: DataDescription, notes: Sequence[str] = ()) -> "Description":
        """Returns the report on data that was described; it does not hold the data."""
        sections = [_options(found)]
        for i, part in enumerate(found.parts):
            sections += _sections(part, found.tokenizer, found.options.max_length, f"part{i}")
        return cls(str(found), found.sources, tuple(sections), (*notes, found.overlap))

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return report.render_body((), self.sections, self.notes)

    def save(self, path: pathlib.Path | str) -> None:
        """Writes the HTML page, one file without external resources, and replaces an earlier one.

        Raises:
          InputError: the file cannot be written.
        """
        target = pathlib.Path(path)
        with os_errors.reported(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, report.render(self.title, (), (), self.sections, self.notes, kind="Data"))


def _options(found: DataDescription) -> Section:
    options = found.options
    rows: list[tuple[Cell, ...]] = [
        ("tokenizer", found.tokenizer.name or "bytes"),
        ("prompt format of strings", options.strings),
        ("max_length", f"{options.max_length:,} tokens"),
        ("longer comparisons", options.on_overlong),
        ("ties", options.ties),
    ]
    return Section(
        "Options", "\n\n".join(found.template), (Table("How the data is read", ("option", "value"), tuple(rows)),)
    )


def _sections(part: Part, tokenizer: Tokenizer, max_length: int, name: str) -> list[Section]:
    """Returns the sections about a part; `name` begins the names of its figures."""
    titled = [_sources(part), *_lengths(part, tokenizer, max_length, name), _responses(part, name)]
    titled += [*_labels(part, name), _duplicates(part.duplicates), *_examples(part, tokenizer)]
    prefix = f"{part.name.capitalize()}: " if part.name else ""
    return [dataclasses.replace(section, title=prefix + section.title) for section in titled]


def _sources(part: Part) -> Section:
    columns = ("source", "format", "records", "kept", "skipped", "too long", "truncated", "tokens", "longest")
    rows = tuple(
        (
            found.source,
            found.format,
            found.records,
            found.kept,
            sum(found.skipped.values()),
            found.dropped_overlong,
            found.truncated,
            found.tokens,
            found.longest,
        )
        for found in part.reports
    )
    causes = tuple((found.source, cause) for found in part.reports for cause in found.causes())
    tables = [Table("Comparisons that are kept and left out; tokens of those kept", columns, rows)]
    tables += [Table("Why records are left out", ("source", "cause"), causes)] if causes else []
    special = sum(found.special_token_texts for found in part.reports)
    texts = [f"{found.source}: {line}" for found in part.reports if (line := found.fields_line())]
    texts += [f"{found.source}: {line}" for found in part.reports if (line := found.describe_left_out())]
    texts.append(
        f"{count_of(special, 'string')} with special tokens of the tokenizer: if a chat template wrote them, give "
        "messages instead, or BOS and EOS may be there twice (see the examples)."
        if special
        else "No string has special tokens of the tokenizer."
    )
    return Section("Sources", "\n\n".join(texts), tuple(tables))


def _lengths(part: Part, tokenizer: Tokenizer, max_length: int, name: str) -> list[Section]:
    """Returns the section about the lengths of what is kept, in tokens."""
    if not len(part.dataset):
        return []
    segments, starts = np.asarray(part.dataset.segments), part.dataset.segment_offsets[:-1]
    counts = np.diff(part.dataset.segment_offsets) - 1  # responses of each comparison
    prefixes, branches = segments[starts], np.delete(segments, starts)
    has_prompt = counts > 1
    separated = _separate_prompts(part, np.flatnonzero(~has_prompt), tokenizer, max_length)
    lengths = {
        "conversation": np.repeat(prefixes, counts) + branches,
        "prompt": np.concatenate([prefixes[has_prompt], separated[:, 0]]),
        "response": np.concatenate([branches[np.repeat(has_prompt, counts)], separated[:, 1]]),
    }
    found = {kind: values for kind, values in lengths.items() if len(values)}
    table = Table(
        "Percentiles of the lengths in tokens",
        ("", "number", *(f"{level} %" for level in _LEVELS), "longest"),
        tuple(
            (kind, len(v), *np.percentile(v, _LEVELS).astype(int).tolist(), int(v.max())) for kind, v in found.items()
        ),
    )
    text = (
        f"max_length is {max_length:,} tokens of a whole conversation; longer comparisons are not in the histograms. "
        "The prompt is what the responses of a comparison have in common at the start."
    )
    figures = [
        _histogram(f"{name}-{kind}-length", values, f"{kind} length in tokens", f"Tokens of each {kind}.", max_length)
        for kind, values in found.items()
    ]
    return [Section("Lengths", text, (table,), tuple(figures))]


def _separate_prompts(part: Part, single: np.ndarray, tokenizer: Tokenizer, max_length: int) -> np.ndarray:
    """Returns the tokens of prompt and response, int [n, 2], of comparisons with a single response, where known.

    Args:
      single: indices of the comparisons; of many, some are taken.
    """
    by_place = _by_place(part)
    found = []
    for i in single[:: max(1, -(-len(single) // _SEPARATED))].tolist():
        comparison, tree = by_place.get(part.dataset.where(i)), part.dataset.tree(i)
        if comparison is None or tree.longest >= max_length:  # the prompt may have been truncated
            continue
        tree = separate_prompt(comparison, tree, tokenizer)
        if len(tree.prefix) and len(tree.branches[0]):
            found.append((len(tree.prefix), len(tree.branches[0])))
    return np.array(found, np.int64).reshape(-1, 2)


def _by_place(part: Part) -> dict[str, Comparison]:
    return {comparison.where: comparison for comparison in part.comparisons}


def _responses(part: Part, name: str) -> Section:
    counts = np.array([len(comparison.conversations) for comparison in part.comparisons])
    figures = []
    if len(np.unique(counts)) > 1:
        figures.append(
            _histogram(f"{name}-responses", counts, "responses of a comparison", "Responses per comparison.")
        )
    margins = np.array([edge.margin for comparison in part.comparisons for edge in comparison.edges])
    if len(np.unique(margins)) > 1:
        figures.append(_histogram(f"{name}-margins", margins, "margin", "Margins of the preferences."))
    text = "\n\n".join(describe_responses(part.comparisons)) if len(counts) else "No comparison was read."
    return Section("Responses and preferences", text, figures=tuple(figures))


def _labels(part: Part, name: str) -> list[Section]:
    rows, figures = [], []
    for a, (attribute, values) in enumerate(find_labels(part.comparisons).items()):
        known = values[np.isfinite(values)]
        of = (float(known.min()), float(known.max()), float(known.mean()), float(known.std())) if len(known) else ()
        rows.append((attribute, len(known), len(values), *(of or (None,) * 4)))
        if len(known) and a < _FIGURES:
            figures.append(_histogram(f"{name}-label{a}", known, "label", f"Labels of {attribute}."))
    columns = ("attribute", "labels", "responses", "minimum", "maximum", "mean", "standard deviation")
    return [Section("Labels", "", (Table("Attributes", columns, tuple(rows)),), tuple(figures))] if rows else []


def _histogram(name: str, values: np.ndarray, label: str, caption: str, mark: int | None = None) -> Figure:
    """Returns the histogram of values; few different values have a bar each.

    Args:
      mark: maximum length, drawn as a dashed line where it is not far beyond the values.
    """
    different = np.unique(values)
    if len(different) <= _BINS // 2:
        width = float(np.diff(different).min()) if len(different) > 1 else 1.0
        counts = np.array([np.count_nonzero(values == value) for value in different])
        starts, ends = different - 0.4 * width, different + 0.4 * width
    else:
        low, high, bins = values.min(), values.max(), _BINS
        if np.issubdtype(values.dtype, np.integer):  # each bin has equally many integers
            step = -(-int(high - low + 1) // _BINS)
            bins = -(-int(high - low + 1) // step)
            high = low + bins * step
        counts, bounds = np.histogram(values, bins, (low, high))
        starts, ends = bounds[:-1], bounds[1:]
    near = mark if mark is not None and mark <= 2 * different[-1] else None
    whole = bool((different == different.round()).all())
    return Figure(name, (functools.partial(_draw, counts, starts, ends, whole, label, near),), caption)


def _draw(
    counts: np.ndarray, starts: np.ndarray, ends: np.ndarray, whole: bool, label: str, mark: int | None, axes: "Axes"
) -> None:
    axes.bar(starts, counts, width=ends - starts, align="edge", color="#47a")
    if mark is not None:
        axes.axvline(mark, color="#b33", linestyle="--", linewidth=1, label="max_length", gid="max-length")
        axes.legend()
    axes.set(xlabel=label, ylabel="number", ylim=(0, 1.05 * max(int(counts.max()), 1)))
    axes.locator_params(axis="y", integer=True)
    axes.locator_params(axis="x", integer=whole)


def _duplicates(found: DuplicateReport) -> Section:
    text = "\n\n".join(dataclasses.replace(found, examples=[], overlaps=[]).lines())
    columns = ("evaluation set", "prompts", "same conversations", "same prompt", "similar prompt")
    rows = tuple((o.name, o.prompts, o.same, o.same_prompt, o.similar_prompt) for o in found.overlaps)
    tables = (Table("Comparisons that are in evaluation sets too (data.exclude leaves them out)", columns, rows),)
    alike = [*found.examples, *(example for overlap in found.overlaps for example in overlap.examples)]
    examples = tuple(
        Example(
            f"Similar prompts ({example.similarity:.2f}): {' and '.join(example.places)}",
            tuple(zip(example.places, example.texts, strict=True)),
        )
        for example in alike
    )
    return Section("Duplicates and overlap" if rows else "Duplicates", text, tables if rows else (), (), examples)


def _examples(part: Part, tokenizer: Tokenizer) -> list[Section]:
    """Returns the section with the first, the shortest, a typical and the longest comparison."""
    if not len(part.dataset):
        return []
    order = np.argsort(part.dataset.lengths, kind="stable")
    chosen = {"first": 0, "median length": int(order[len(order) // 2])}
    chosen |= {"shortest": int(order[0]), "longest": int(order[-1])}
    by_place = _by_place(part)
    names = {i: name for name, i in reversed(chosen.items())}  # each once, by its first name
    examples = [
        _example(
            by_place.get(part.dataset.where(i)), part.dataset.tree(i), f"{part.dataset.where(i)} ({name})", tokenizer
        )
        for i, name in sorted(names.items(), key=lambda found: list(chosen).index(found[1]))
    ]
    text = "Tokens are separated by ¦; rewards are read at the tokens in ⟦ ⟧."
    return [Section("Examples", text, examples=tuple(examples))]


def _example(comparison: Comparison | None, tree: Tree, title: str, tokenizer: Tokenizer) -> Example:
    tokens = ("tokens", "\n".join(render(tree, tokenizer)))
    if comparison is None:
        return Example(title, (tokens,))
    prompt, texts = response_texts(comparison)
    fields = [("prompt", shorten(prompt)), *((f"response {k}", shorten(text)) for k, text in enumerate(texts))]
    return Example(title, (*fields, *_judgements(comparison), tokens))


def _judgements(comparison: Comparison) -> Iterable[tuple[str, str]]:
    """Yields the preferences and the labels of a comparison as fields of an example."""
    noun = "step" if comparison.steps else "response"
    if comparison.edges:
        lines = [
            f"{noun} {edge.winner} is better than {noun} {edge.loser}"
            + (f", margin {edge.margin:g}" if edge.margin else "")
            + (f", probability {edge.target:g}" if edge.target != 1 else "")
            for edge in comparison.edges
        ]
        yield "preferences", "\n".join(lines)
    if comparison.labels is not None:
        rows = [
            f"{noun} {i}: "
            + ", ".join(f"{name} {value:g}" for name, value in zip(comparison.attributes, row, strict=True))
            for i, row in enumerate(comparison.labels.tolist())
        ]
        yield "labels", "\n".join(rows)
