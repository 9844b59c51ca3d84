"""Report of duplicates among comparisons and of their overlap with evaluation sets, with examples."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rmjax.core.text import count_of
from rmjax.data.curation.duplicates import (
    common_prefix,
    match,
    near_duplicates,
    same_conversations,
    same_prompt,
    similar_prompt,
    split_prompt,
)
from rmjax.data.curation.selection import Reference
from rmjax.data.curation.similarity import similarity
from rmjax.data.schema import Comparison

_EXAMPLES, _TRIED = 3, 20  # shown, of the first ones that are tried
_TEXT = 100  # characters of an example's text
_CANDIDATES = 1000  # texts among which the most similar one is shown


@dataclasses.dataclass(frozen=True)
class Example:
    """Two similar prompts: their estimated similarity, the places of their records, and their texts, shortened."""

    similarity: float
    places: tuple[str, str]
    texts: tuple[str, str]

    def lines(self) -> list[str]:
        """Returns the example as two lines."""
        (first, second), width = self.places, max(map(len, self.places))
        return [
            f"  {self.similarity:.2f}  {first:{width}}  {self.texts[0]}",
            f"        {second:{width}}  {self.texts[1]}",
        ]


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What comparisons have in common with an evaluation set.

    Attributes:
      name: the evaluation set.
      size, prompts: number of its comparisons, and of its different prompts.
      same: number of comparisons with the same conversations as one of its comparisons.
      same_prompt, similar_prompt: number of comparisons with one of its prompts, and of others with a similar prompt.
      examples: some of the similar prompts.
    """

    name: str
    size: int
    prompts: int
    same: int
    same_prompt: int
    similar_prompt: int
    examples: list[Example]

    def lines(self) -> list[str]:
        """Returns the lines about the overlap."""
        size = f"{count_of(self.size, 'comparison')}, {count_of(self.prompts, 'prompt')}"
        return [
            f"overlap with {self.name} ({size}): {count_of(self.same, 'comparison')} with the same conversations, "
            f"{self.same_prompt:,} with the same prompt, {self.similar_prompt:,} with a similar prompt; data.exclude "
            f"would leave out {self.same_prompt + self.similar_prompt:,}",
            *(line for example in self.examples for line in example.lines()),
        ]


@dataclasses.dataclass(frozen=True)
class DuplicateReport:
    """Duplicates among comparisons, and their overlap with evaluation sets.

    Attributes:
      comparisons: number of comparisons.
      same: number of comparisons with the same conversations as an earlier one.
      other_labels: number of these with other labels than that one, such as the opposite preference.
      near: number of other comparisons that are a near duplicate of an earlier one: prompt and responses are similar.
      prompts, similar_prompts: number of different prompts, and of those that are similar to an earlier one.
      similarity: Jaccard similarity of word n-grams from which texts are similar.
      examples: some of the similar prompts.
      overlaps: the overlap with each evaluation set.
    """

    comparisons: int
    same: int
    other_labels: int
    near: int
    prompts: int
    similar_prompts: int
    similarity: float
    examples: list[Example]
    overlaps: list[Overlap]

    def lines(self) -> list[str]:
        """Returns the lines about duplicates and overlap."""
        labels = f", {self.other_labels:,} of them with other labels" if self.other_labels else ""
        return [
            f"duplicates: {count_of(self.same, 'comparison')} with the same conversations as another one{labels}; "
            f"{count_of(self.near, 'near duplicate')}; data.duplicates = drop would leave out {self.same:,}, drop_near "
            f"{self.same + self.near:,}",
            f"prompts: {self.prompts:,} different, {self.similar_prompts:,} of them similar to an earlier one (Jaccard "
            f"similarity of word bigrams estimated as at least {self.similarity:g})",
            *(line for example in self.examples for line in example.lines()),
            *(line for overlap in self.overlaps for line in overlap.lines()),
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def report_duplicates(
    comparisons: Sequence[Comparison], found: np.ndarray, threshold: float, reference: Reference | None = None
) -> DuplicateReport:
    """Returns the report on comparisons, given their signatures, and on their overlap with other data."""
    same, near = same_conversations(found), near_duplicates(found, threshold)
    index = np.arange(len(found))
    duplicated = same != index
    prompts, similar = same_prompt(found), similar_prompt(found, threshold)
    is_new = (prompts == index) & (found["prompt"] != 0)
    alike = np.flatnonzero(is_new & (similar != index))
    examples = []
    for i in alike[:_TRIED].tolist():
        others = np.flatnonzero(is_new & (similar == similar[i]) & (index < i))[:_CANDIDATES]
        examples.append(_example(comparisons[i], found[i], [comparisons[k] for k in others], found[others]))
    return DuplicateReport(
        len(found),
        int(duplicated.sum()),
        int((found["labels"] != found["labels"][same]).sum()),
        int((near != index).sum() - duplicated.sum()),
        int(is_new.sum()),
        len(alike),
        threshold,
        _choose_examples(examples, threshold),
        [] if reference is None else _overlaps(comparisons, found, threshold, reference),
    )


def _overlaps(
    comparisons: Sequence[Comparison], found: np.ndarray, threshold: float, reference: Reference
) -> list[Overlap]:
    overlaps = []
    for name in dict.fromkeys(reference.names):
        own = np.flatnonzero(np.array(reference.names) == name)
        others = reference.signatures[own]
        matches = match(found, others, threshold)
        has_same = matches.prompt >= 0
        alike = np.flatnonzero((matches.similar_prompt >= 0) & ~has_same)
        compared = [reference.comparisons[k] for k in own]
        examples = [_example(comparisons[i], found[i], compared, others) for i in alike[:_TRIED].tolist()]
        overlaps.append(
            Overlap(
                name,
                len(own),
                len(np.unique(others["prompt"][others["prompt"] != 0])),
                int((matches.conversations >= 0).sum()),
                int(has_same.sum()),
                len(alike),
                _choose_examples(examples, threshold),
            )
        )
    return overlaps


def _example(
    comparison: Comparison, signature: np.ndarray, others: Sequence[Comparison], signatures: np.ndarray
) -> Example:
    """Returns the example of a prompt and the most similar one among others."""
    values = similarity(signature["prompt_sketch"], signatures["prompt_sketch"])
    best = int(values.argmax())
    other = others[best]
    return Example(float(values[best]), (comparison.where, other.where), _excerpts(comparison, other))


def _choose_examples(examples: list[Example], threshold: float) -> list[Example]:
    """Returns a few examples, those first that are similar to one prompt, rather than to one similar to it."""
    return sorted(examples, key=lambda example: example.similarity < threshold)[:_EXAMPLES]


def _excerpts(*pair: Comparison) -> tuple[str, str]:
    """Returns the prompts of two comparisons, each in one line, shortened to where they begin to differ."""
    first, second = (" ".join(" ".join(split_prompt(comparison)[0]).split()) for comparison in pair)
    start = max(0, common_prefix(first.lower(), second.lower()) - _TEXT // 2)

    def cut(text: str) -> str:
        return ("…" if start else "") + text[start : start + _TEXT] + ("…" if len(text) > start + _TEXT else "")

    return cut(first), cut(second)
