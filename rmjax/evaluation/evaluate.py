"""Evaluation of a reward model on labeled data: metrics, predictions and a report."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rmjax.core.errors import InputError
from rmjax.core.files import write_together
from rmjax.core.progress import progress_bar
from rmjax.core.text import count_of
from rmjax.data.records.formats import Item
from rmjax.data.records.options import DATA_DEFAULTS, ReadOptions
from rmjax.data.records.read import read_items
from rmjax.data.records.sources import Source
from rmjax.data.schema import Comparison
from rmjax.data.tokens.dataset import align_labels
from rmjax.data.tokens.templates import TemplateReport
from rmjax.evaluation import report
from rmjax.evaluation.pipeline import RewardPipeline, prediction_line, score_chunks, template_lines
from rmjax.metrics.edges import EdgeTable, edge_table
from rmjax.metrics.labels import label_metrics
from rmjax.metrics.pairs import pair_metrics
from rmjax.metrics.subsets import subset_metrics

ScoredComparison = tuple[Comparison, np.ndarray]  # with its rewards float32 [R, A]


def read_evaluation_data(
    sources: Sequence[str | Source],
    options: ReadOptions,
    *,
    limit: int = 0,
    on_bad_record: str = "error",
    log: Callable[[str], object] = lambda line: None,
) -> list[Item]:
    """Returns the items of `read_items`, which documents the errors; of the built-in data, the validation split.

    `log` is called with a line about the use of the records' fields.
    """
    options = dataclasses.replace(options, limit=limit, on_bad_record=on_bad_record)
    size = limit or DATA_DEFAULTS.synthetic_validation
    items, read = read_items(sources, options, split="validation", synthetic_size=size)
    if fields := read.fields_line():
        log(fields)
    return items


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation:
    """The result of `evaluate`; a notebook shows it as a report.

    Attributes:
      title: names model and data.
      metrics: `comparisons`, `not_scored`, and the metrics by name, those of a subset as `SUBSET/NAME`.
      predictions: a line per item: the record's fields and `rewards` or `error`.
      edges: rewards at the edges' ends, for figures; None if the data has no preferences.
      notes: the use of the records' fields; what the chat template adds of its own, and leaves out of the data.
    """

    title: str
    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    edges: EdgeTable | None
    notes: tuple[str, ...] = ()

    @property
    def headline(self) -> list[tuple[str, str]]:
        """The metrics as (name, text) rows."""
        rows = [("comparisons", f"{self.metrics['comparisons']:,}")]
        if self.metrics["not_scored"]:
            rows.append(("not scored (see `error` in predictions.jsonl)", f"{self.metrics['not_scored']:,}"))
        for name, value in list(self.metrics.items())[2:]:
            if name == "accuracy" and "accuracy_low" in self.metrics:
                interval = f"{self.metrics['accuracy_low']:.4f} to {self.metrics['accuracy_high']:.4f}"
                rows.append((name, f"{value:.4f} (95 %: {interval})"))
            elif not name.endswith(("accuracy_low", "accuracy_high")):
                rows.append((name, f"{value:.4f}"))
        return rows

    def save(self, directory: pathlib.Path | str) -> None:
        """Writes metrics.json, predictions.jsonl and report.html to `directory`, which is created if missing.

        Without metrics.json the others are incomplete: the program was killed.
        """
        path = pathlib.Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.predictions)
        page = report.render(self.title, self.headline, self.edges, self.notes)
        metrics = json.dumps(self.metrics, indent=2) + "\n"
        write_together(path, {"metrics.json": metrics, "predictions.jsonl": lines, "report.html": page})

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self.headline)
        return "\n".join((*(f"{name:<{width}}  {value}" for name, value in self.headline), *self.notes))

    def _repr_html_(self) -> str:
        return report.render_body(self.headline, self.edges, self.notes)


def evaluate(
    pipeline: RewardPipeline,
    items: Sequence[Item],
    *,
    title: str = "",
    notes: Sequence[str] = (),
    progress: bool = True,
) -> Evaluation:
    """Scores items and computes the metrics of their labels.

    Items that cannot be scored (for example too long) are counted in the metrics and have `error` in the predictions.
    `notes` about the data are the first of the evaluation's notes.

    Raises:
      InputError: no item could be scored, or no scored comparison has a preference or a label.
    """
    scored: list[ScoredComparison] = []
    predictions = []
    template = TemplateReport()
    with progress_bar(len(items), "scoring", "record", disable=not progress) as bar:
        for item, rewards in (pair for chunk in score_chunks(pipeline, items, bar, template) for pair in chunk):
            predictions.append(prediction_line(item, rewards, pipeline.attributes))
            if isinstance(item, Comparison) and not isinstance(rewards, str):
                scored.append((item, rewards))
    if not scored:
        errors = [line["error"] for line in predictions if "error" in line]
        first = f"; the first error: {errors[0]}" if errors else "; the data has no records"
        raise InputError(f"none of {count_of(len(items), 'record')} could be scored{first}")
    metrics = compute_metrics(pipeline, scored)
    if not metrics:
        names = sorted({name for comparison, _ in scored for name in comparison.attributes})
        raise InputError(
            "no scored comparison has a known preference or a label of the model's attributes "
            f"({', '.join(pipeline.attributes)}; the data has {', '.join(names) or 'none'}); for unlabeled data use "
            "rmjax.score"
        )
    subsets = [comparison.subset for comparison, _ in scored]
    metrics |= subset_metrics(subsets, lambda members: compute_metrics(pipeline, [scored[i] for i in members]))
    counts = {"comparisons": len(scored), "not_scored": len(items) - len(scored)}
    edges = edge_table(*_ranked(pipeline, scored)) if "accuracy_low" in metrics else None
    notes = (*notes, *template_lines(pipeline, template))
    return Evaluation(title, counts | metrics, predictions, edges, notes)


def compute_metrics(pipeline: RewardPipeline, scored: Sequence[ScoredComparison]) -> dict[str, float]:
    """Returns the metrics of the labels that comparisons have: preferences, attributes, steps."""
    metrics: dict[str, float] = {}
    if any(edge.target != 0.5 for comparison, _ in scored for edge in comparison.edges):
        ceilings = [comparison.ceiling for comparison, _ in scored if comparison.edges]
        metrics |= pair_metrics(*_ranked(pipeline, scored), ceilings)
    for steps, ceiling in ((False, "mse_floor"), (True, "accuracy_ceiling")):
        members = [pair for pair in scored if pair[0].labels is not None and bool(pair[0].steps) == steps]
        labels = [_aligned_labels(pipeline, comparison) for comparison, _ in members]
        found = label_metrics([rewards for _, rewards in members], labels, pipeline.attributes, steps=steps)
        metrics |= found
        if found and not np.isnan(ceilings := [comparison.ceiling for comparison, _ in members]).any():
            metrics[ceiling] = float(np.mean(ceilings))
    return metrics


def _ranked(pipeline: RewardPipeline, scored: Sequence[ScoredComparison]) -> tuple[list, list]:
    """Returns the merged rewards [R] and the edges of each comparison that has edges."""
    ranked = [(pipeline.merge(rewards), comparison.edges) for comparison, rewards in scored if comparison.edges]
    return [rewards for rewards, _ in ranked], [edges for _, edges in ranked]


def _aligned_labels(pipeline: RewardPipeline, comparison: Comparison) -> np.ndarray:
    """Returns the labels [R, A] of the head's attributes, NaN where the data lacks one."""
    assert comparison.labels is not None
    # The single label of a step belongs to the head's first attribute, whatever its name.
    names = pipeline.attributes[:1] if comparison.steps else comparison.attributes
    return align_labels(comparison.labels, names, pipeline.attributes)
