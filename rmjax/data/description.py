"""Text description of a data source: counts, lengths, labels, duplicates, and one comparison token by token."""

import collections
import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np

from rmjax.data.records.read import read_comparisons
from rmjax.data.schema import Comparison, Conversation, Tree
from rmjax.data.tokens.dataset import align_labels
from rmjax.data.tokens.rendering import make_trees
from rmjax.data.tokens.tokenize import DatasetOptions, tokenize
from rmjax.data.tokens.tokenizer import Tokenizer

_MAX_TOKENS = 400  # shown of a prompt or response
_SYNTHETIC_SIZE = 1000  # comparisons of the built-in data, without a limit


def describe(sources: Sequence[str], tokenizer: Tokenizer, options: DatasetOptions) -> str:
    """Returns the description of a source.

    Raises:
      InputError: the source cannot be read, or no record can be used.
    """
    comparisons, read_report = read_comparisons(sources, options, synthetic_size=options.limit or _SYNTHETIC_SIZE)
    dataset, report = tokenize(comparisons, tokenizer, options, ", ".join(sources), read_report)
    lines = [str(report)]
    if len(dataset):
        low, median, high = np.percentile(dataset.lengths, [5, 50, 95]).astype(int).tolist()
        lines.append(
            f"unique tokens per comparison: median {median}, 5 % below {low}, 5 % above {high}; "
            f"longest {int(dataset.lengths.max())}"
        )
    lines += _responses(comparisons) + _labels(comparisons)
    counts = collections.Counter(map(_comparison_key, comparisons))
    duplicates = sum(count - 1 for count in counts.values())
    lines.append(f"duplicates: {duplicates:,} comparisons have the same conversations as another one")
    trees = make_trees(comparisons[:1], tokenizer)
    if trees and isinstance(trees[0], Tree):
        lines += ["", f"{comparisons[0].where}, token by token (¦ between tokens, ⟦ ⟧ at readouts):"]
        lines += render(trees[0], tokenizer)
    return "\n".join(lines)


def _responses(comparisons: Sequence[Comparison]) -> list[str]:
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
            f"preferences: {len(edges):,}; {pairs - len(edges):,} pairs tied; the better response is the "
            f"longer one in {longer:.1%}; margins {margins.min():g} to {margins.max():g}"
        )
    return lines


def _labels(comparisons: Sequence[Comparison]) -> list[str]:
    lines = []
    labels = [(c.labels, c.attributes) for c in comparisons if c.labels is not None]
    for name in dict.fromkeys(name for _, attributes in labels for name in attributes):
        values = np.concatenate([align_labels(table, attributes, (name,))[:, 0] for table, attributes in labels])
        known = values[~np.isnan(values)]
        line = f"label {name}: {len(known):,} of {len(values):,}"
        if len(known):
            line += f", {known.min():g} to {known.max():g}, mean {known.mean():.3f}, std {known.std():.3f}"
        lines.append(line)
    return lines


def overlap(first: Sequence[str], second: Sequence[str], options: DatasetOptions) -> str:
    """Returns a line with the numbers of comparisons and of single conversations that two sources have in common."""
    size = options.limit or _SYNTHETIC_SIZE
    sets = [read_comparisons(sources, options, synthetic_size=size)[0] for sources in (first, second)]
    comparisons = set.intersection(*(set(map(_comparison_key, found)) for found in sets))
    conversations = set.intersection(*({_hash(text) for c in found for text in c.conversations} for found in sets))
    return (
        f"overlap of {', '.join(first)} and {', '.join(second)}: {len(comparisons):,} comparisons, "
        f"{len(conversations):,} conversations"
    )


def _comparison_key(comparison: Comparison) -> tuple[str, ...]:
    return tuple(sorted(map(_hash, comparison.conversations)))


def _hash(conversation: Conversation) -> str:
    return hashlib.sha256(json.dumps(conversation, sort_keys=True).encode()).hexdigest()


def render(tree: Tree, tokenizer: Tokenizer) -> list[str]:
    """Returns a tree as lines: the prefix, then each branch, tokens separated by ¦, readouts in ⟦ ⟧."""

    def join(tokens: np.ndarray, readouts: Iterable[int] = ()) -> str:
        texts = [text.replace("\n", "⏎") for text in tokenizer.token_strings(tokens)]
        for index in readouts:
            texts[index] = f"⟦{texts[index]}⟧"
        if len(texts) <= _MAX_TOKENS:
            return "¦".join(texts)
        shown = [*texts[: _MAX_TOKENS // 2], "…", *texts[-_MAX_TOKENS // 2 :]]
        return "¦".join(shown) + f" … {len(texts) - _MAX_TOKENS} more"

    lines = [f"  shared ({len(tree.prefix)}): {join(tree.prefix)}"]
    for k, tokens in enumerate(tree.branches):
        readouts = {index for branch, index in tree.readouts if branch == k}
        lines.append(f"  response {k} ({len(tokens)}): {join(tokens, readouts)}")
    return lines
