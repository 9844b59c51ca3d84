"""What is in a source of data, as text to read."""

import collections
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from rmjax.data.records import synthetic
from rmjax.data.records.formats import read_comparisons
from rmjax.data.records.sources import ReadReport
from rmjax.data.schema import Comparison, Tree
from rmjax.data.tokens.dataset import align_labels
from rmjax.data.tokens.load import SYNTHETIC, Options, Report, tokenize
from rmjax.data.tokens.rendering import make_trees
from rmjax.data.tokens.tokenizer import Tokenizer

_SHOWN = 400  # tokens of the comparison that is shown


def read(sources: Sequence[str], options: Options) -> tuple[list[Comparison], ReadReport]:
    """Reads a source, bad records counted and left out."""
    if list(sources) == [SYNTHETIC]:
        found = synthetic.comparisons("train", options.limit or 1000, options.format)
        return found, ReadReport(options.format, len(found))
    found, report = read_comparisons(sources, options, "skip", group_prompts=options.group_prompts)
    return found[: options.limit or None], report


def describe(sources: Sequence[str], tokenizer: Tokenizer, options: Options) -> str:
    """Returns the description of a source.

    Raises:
      InputError: the source cannot be read, or no record can be used.
    """
    comparisons, read_report = read(sources, options)
    report = Report(", ".join(sources), read_report.format, read_report.records, blank_lines=read_report.blank)
    report.skipped = dict(read_report.skipped)
    dataset = tokenize(comparisons, tokenizer, options, report)
    lines = [str(report)]
    if len(dataset):
        quantiles = np.percentile(dataset.lengths, [5, 50, 95]).astype(int).tolist()
        lines.append(
            f"unique tokens a comparison: median {quantiles[1]}, 5 % below {quantiles[0]}, 5 % above "
            f"{quantiles[2]}; longest {int(dataset.lengths.max())}"
        )
    lines += _responses(comparisons) + _labels(comparisons) + _duplicates(comparisons)
    trees = make_trees(comparisons[:1], tokenizer)
    if trees and isinstance(trees[0], Tree):
        lines += ["", f"{comparisons[0].where}, token by token (¦ between tokens, ⟦ ⟧ where a reward is read):"]
        lines += render(trees[0], tokenizer)
    return "\n".join(lines)


def _responses(comparisons: Sequence[Comparison]) -> list[str]:
    counts = collections.Counter(len(c.conversations) for c in comparisons)
    lines = ["responses a comparison: " + ", ".join(f"{k}: {count:,}" for k, count in sorted(counts.items()))]
    edges = [(c, edge) for c in comparisons for edge in c.edges]
    if edges:
        size = lambda c, k: len(json.dumps(c.conversations[k], ensure_ascii=False))
        sizes = [size(c, e.winner) - size(c, e.loser) for c, e in edges if e.target != 0.5]
        longer = np.mean(0.5 + 0.5 * np.sign(sizes)) if sizes else np.nan
        possible = sum(len(c.conversations) * (len(c.conversations) - 1) // 2 for c in comparisons if c.edges)
        margins = np.array([edge.margin for _, edge in edges])
        lines.append(
            f"preferences: {len(edges):,}; {possible - len(edges):,} pairs tied; the better response is the "
            f"longer one in {longer:.1%}; margins {margins.min():g} to {margins.max():g}"
        )
    return lines


def _labels(comparisons: Sequence[Comparison]) -> list[str]:
    lines = []
    labelled = [c for c in comparisons if c.labels is not None]
    for name in dict.fromkeys(name for c in labelled for name in c.attributes):
        values = np.concatenate([align_labels(c.labels, c.attributes, (name,))[:, 0] for c in labelled])
        known = values[~np.isnan(values)]
        line = f"label {name}: {len(known):,} of {len(values):,}"
        if len(known):
            line += f", {known.min():g} to {known.max():g}, mean {known.mean():.3f}, std {known.std():.3f}"
        lines.append(line)
    return lines


def _duplicates(comparisons: Sequence[Comparison]) -> list[str]:
    seen = collections.Counter(map(_key, comparisons))
    again = sum(count - 1 for count in seen.values())
    return [f"duplicates: {again:,} comparisons repeat another's conversations"]


def overlap(first: Sequence[str], second: Sequence[str], options: Options) -> str:
    """Returns what two sources share: whole comparisons, and single conversations."""
    one, other = (read(sources, options)[0] for sources in (first, second))
    whole = {_key(c) for c in one} & {_key(c) for c in other}
    single = [{_hash(text) for c in part for text in c.conversations} for part in (one, other)]
    return (
        f"overlap of {', '.join(first)} and {', '.join(second)}: {len(whole):,} comparisons, "
        f"{len(single[0] & single[1]):,} conversations"
    )


def _key(comparison: Comparison) -> tuple[str, ...]:
    return tuple(sorted(map(_hash, comparison.conversations)))


def _hash(conversation: object) -> str:
    return hashlib.sha256(json.dumps(conversation, sort_keys=True).encode()).hexdigest()


def render(tree: Tree, tokenizer: Tokenizer) -> list[str]:
    """Returns a tree as lines: the shared prompt, then each response, the tokens marked at which rewards are read."""
    marked = collections.defaultdict(set)
    for branch, index in tree.readouts:
        marked[branch].add(index)

    def show(tokens: np.ndarray, marks: set[int]) -> str:
        words = [word.replace("\n", "⏎") for word in tokenizer.words(tokens)]
        words = [f"⟦{word}⟧" if i in marks else word for i, word in enumerate(words)]
        left = f" … {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
        kept = words if not left else [*words[: _SHOWN // 2], "…", *words[-_SHOWN // 2 :]]
        return "¦".join(kept) + left

    lines = [f"  shared ({len(tree.prefix)}): {show(tree.prefix, set())}"]
    for k, branch in enumerate(tree.branches):
        lines.append(f"  response {k} ({len(branch)}): {show(branch, marked[k])}")
    return lines
