"""Two models on the same data: metrics and the section with the comparisons where they differ."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.core.sections import Example, Section, Table, metric_table
from rmjax.data.records.formats import Item
from rmjax.data.schema import Comparison
from rmjax.evaluation.measures.labels import label_samples
from rmjax.evaluation.measures.texts import edge_example
from rmjax.evaluation.scores import Scores
from rmjax.metrics.bootstrap import Samples
from rmjax.metrics.comparison import compare_edges, compare_samples
from rmjax.metrics.edges import EdgeTable, edge_table

_EXAMPLES = 10  # of each model
_HEADLINE = ("accuracy", "mse", "pearson", "first_error_f1", "prm_score")
_TITLE = "Comparison with another model"


@dataclasses.dataclass(frozen=True, repr=False)
class ModelComparison:
    """The result of `Evaluation.compare`.

    Attributes:
      metrics: NAME, NAME_other and NAME_difference of each metric, with intervals; of preferences also those of
        `rmjax.metrics.comparison.compare_edges`.
      section: the report's section.
      main: names of the metrics of the headline.
    """

    metrics: dict[str, float]
    section: Section
    main: tuple[str, ...] = _HEADLINE

    @property
    def headline(self) -> list[tuple[str, str]]:
        """The main metrics as (name, text) rows."""
        m, rows = self.metrics, []
        for name in self.main:
            if (key := f"{name}_difference") in m:
                interval = f"{m[f'{key}_low']:+.4f} to {m[f'{key}_high']:+.4f}" if f"{key}_low" in m else "unknown"
                rows.append((f"{name} of the other model", f"{m[f'{name}_other']:.4f}"))
                rows.append((f"{name} difference", f"{m[key]:+.4f} (95 %: {interval})"))
        shown = {"mcnemar_p": "McNemar's p", "agreement": "agreement"}
        return rows + [(text, f"{m[name]:.4g}") for name, text in shown.items() if name in m]

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self.headline)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.headline)


def check_comparable(items: Iterable[Item], first: Sequence[str], second: Sequence[str]) -> None:
    """Raises InputError if two models cannot be compared on data; needs no rewards.

    Args:
      first, second: names of the models' rewards.
    """
    comparisons = [item for item in items if isinstance(item, Comparison)]
    if any(edge.target != 0.5 for one in comparisons for edge in one.edges):
        return
    labeled = [one for one in comparisons if one.labels is not None]
    if any(one.steps for one in labeled):
        return
    known = {name for one in labeled for name in one.attributes}
    if not known.intersection(first).intersection(second):
        raise InputError(
            f"two models cannot be compared on this data: the rewards are {', '.join(first)} and {', '.join(second)}, "
            f"and it has labels of {', '.join(sorted(known)) or 'none'}; expected preferences, steps with labels, or "
            "labels of an attribute that both models have"
        )


def compare_scores(first: Scores, second: Scores) -> ModelComparison:
    """Returns the comparison of two models on the comparisons that both have scored.

    Comparisons are matched by their conversations, edges and labels; of equal ones, in their order. Preferences (pairs,
    rankings, graphs) give the accuracy over their edges; labels the metrics of the attributes that both models have;
    labels of steps the metrics of steps.

    Raises:
      InputError: there is nothing to compare.
    """
    first, second = _matched(first, second)
    ranked = first.with_edges(), second.with_edges()
    metrics: dict[str, float] = {}
    tables: tuple[Table, ...] = ()
    examples: tuple[Example, ...] = ()
    if any(edge.target != 0.5 for one in first.comparisons for edge in one.edges):
        edges = [one.edges for one in ranked[0].comparisons]
        one, other = (edge_table(scores.merged, edges) for scores in ranked)
        found = compare_edges(one, other, ranked[0].prompts[one.comparison])
        tables, examples = _preference_tables(found), _differences(ranked[0], one, other)
        metrics |= found
    common = [name for name in first.attributes if name in second.attributes]
    for steps in (False, True) if common else (True,):
        # The label of a step belongs to the first attribute, whatever its name.
        both = (first, second) if steps else (first.with_attributes(common), second.with_attributes(common))
        samples = [label_samples(scores, steps=steps) for scores in both]
        if found := compare_samples(*map(_defined, samples)):
            tables = (*tables, comparison_table(found, {name: name for name in samples[0]}))
            metrics |= found
    if not metrics:
        raise InputError("the two evaluations have no label in common; expected models of the same rewards")
    text = (
        f"{len(first.comparisons):,} comparisons that both models have scored. The first model is that of this report. "
        "Intervals are paired over prompts."
    )
    return ModelComparison(metrics, Section(_TITLE, text, tables, (), examples))


def _defined(samples: Samples) -> Samples:
    return {name: pair for name, pair in samples.items() if np.isfinite(pair[0])}


def _matched(first: Scores, second: Scores) -> tuple[Scores, Scores]:
    """Returns the comparisons that both models have scored; raises InputError if there are none."""
    labels = lambda one: () if one.labels is None else (one.attributes, one.labels.tolist())
    key = lambda one: repr((one.conversations, one.edges, labels(one)))
    places: dict[str, list[int]] = {}
    for i, comparison in enumerate(second.comparisons):
        places.setdefault(key(comparison), []).append(i)
    pairs = []
    for i, comparison in enumerate(first.comparisons):
        if found := places.get(key(comparison)):
            pairs.append((i, found.pop(0)))
    if not pairs:
        raise InputError(
            "the two evaluations have no scored comparison in common; expected the same data, read by the same options"
        )
    return first.select([i for i, _ in pairs]), second.select([j for _, j in pairs])


def compare_suites(
    suite: str, first: Samples, second: Samples, names: Mapping[str, str], main: tuple[str, ...]
) -> ModelComparison:
    """Returns the comparison of two models by a suite's metrics over the same resampled tasks.

    Args:
      suite: its title.
      names: metrics of the table, with their texts.
      main: names of the metrics of the headline.
    """
    metrics = compare_samples(_defined(first), _defined(second))
    text = f"{suite}, by its rule. The first model is that of this report. Intervals are paired over prompts."
    return ModelComparison(metrics, Section(_TITLE, text, (comparison_table(metrics, names),)), main)


def comparison_table(metrics: Mapping[str, float], names: Mapping[str, str]) -> Table:
    """Returns the table of a comparison's metrics, a row for each of `names` that both models have."""
    ends = ("", "_other", "_difference", "_difference_low", "_difference_high")
    shown = {name: text for name, text in names.items() if f"{name}_difference" in metrics}
    rows = tuple((text, *(metrics.get(f"{name}{end}") for end in ends)) for name, text in shown.items())
    return Table("Metrics and their difference", ("metric", "first", "second", "difference", "low", "high"), rows)


def _preference_tables(metrics: dict[str, float]) -> tuple[Table, ...]:
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
    caption = "Accuracies and their difference; McNemar's test is exact"
    return metric_table(caption, metrics, {name: name for name in names}), agreement


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
