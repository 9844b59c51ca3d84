"""Two models on the same data: metrics and the section with the comparisons where they differ."""

import dataclasses

import numpy as np

from rmjax.core.errors import InputError
from rmjax.core.sections import Example, Section, Table, metric_table
from rmjax.evaluation.measures.texts import edge_example
from rmjax.evaluation.scores import Scores
from rmjax.metrics.comparison import compare_edges
from rmjax.metrics.edges import EdgeTable, edge_table

_EXAMPLES = 10  # of each model


@dataclasses.dataclass(frozen=True, repr=False)
class ModelComparison:
    """The result of `Evaluation.compare`.

    Attributes:
      metrics: of `rmjax.metrics.comparison.compare_edges`, by name.
      section: the report's section.
    """

    metrics: dict[str, float]
    section: Section

    @property
    def headline(self) -> list[tuple[str, str]]:
        """The main metrics as (name, text) rows."""
        m = self.metrics
        interval = f"{m['accuracy_difference_low']:+.4f} to {m['accuracy_difference_high']:+.4f}"
        return [
            ("accuracy of the other model", f"{m['accuracy_other']:.4f}"),
            ("accuracy difference", f"{m['accuracy_difference']:+.4f} (95 %: {interval})"),
            ("McNemar's p", f"{m['mcnemar_p']:.4g}"),
            ("agreement", f"{m['agreement']:.4f}"),
        ]

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self.headline)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.headline)


def compare_scores(first: Scores, second: Scores) -> ModelComparison:
    """Returns the comparison of two models on the comparisons with preferences that both have scored.

    Comparisons are matched by their conversations and edges; of equal ones, in their order.

    Raises:
      InputError: there are none.
    """
    first, second = first.with_edges(), second.with_edges()
    places: dict[str, list[int]] = {}
    for i, comparison in enumerate(second.comparisons):
        places.setdefault(repr((comparison.conversations, comparison.edges)), []).append(i)
    pairs = []
    for i, comparison in enumerate(first.comparisons):
        if found := places.get(repr((comparison.conversations, comparison.edges))):
            pairs.append((i, found.pop(0)))
    if not pairs:
        raise InputError(
            "the two evaluations have no scored preference in common; expected the same data, read by the same options"
        )
    first, second = first.select([i for i, _ in pairs]), second.select([j for _, j in pairs])
    edges = [comparison.edges for comparison in first.comparisons]
    one, other = edge_table(first.merged, edges), edge_table(second.merged, edges)
    metrics = compare_edges(one, other, first.prompts[one.comparison])
    m = metrics
    agreement = Table(
        "Edges that each model has right",
        ("", "second right", "second wrong"),
        (
            ("first right", int(m["both_right"]), int(m["only_first_right"])),
            ("first wrong", int(m["only_second_right"]), int(m["both_wrong"])),
        ),
    )
    names = ("accuracy", "accuracy_other", "accuracy_difference", "agreement", "mcnemar_p")
    shown = metric_table("Accuracies and their difference", metrics, {name: name for name in names})
    text = (
        f"{len(pairs):,} comparisons that both models have scored. The first model is that of this report. Intervals "
        "are paired over prompts; McNemar's test is exact."
    )
    return ModelComparison(
        metrics, Section("Comparison with another model", text, (shown, agreement), (), _differences(first, one, other))
    )


def _differences(scores: Scores, one: EdgeTable, other: EdgeTable) -> tuple[Example, ...]:
    """Returns examples of edges that only one of the models orders rightly: the largest differences of margins first.

    The margins are compared in units of each model's standard deviation.
    """
    scale = lambda margin: margin / max(float(np.sqrt(np.mean(np.square(margin)))), 1e-12)
    lead = scale(one.margin) - scale(other.margin)
    found = []
    for name, members in (
        ("only the first model is right", (one.margin > 0) & (other.margin <= 0)),
        ("only the second model is right", (one.margin <= 0) & (other.margin > 0)),
    ):
        rows = np.flatnonzero(members)
        for edge in rows[np.argsort(-np.abs(lead[rows]), kind="stable")][:_EXAMPLES]:
            index = int(one.comparison[edge])
            title = f"{name}: margins {one.margin[edge]:.4f} and {other.margin[edge]:.4f}"
            found.append(edge_example(scores, index, one.ends[edge], title))
    return tuple(found)
