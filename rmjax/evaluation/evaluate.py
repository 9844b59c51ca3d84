"""Evaluation of a reward model on labeled data: metrics, predictions and a report."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rmjax.core import report
from rmjax.core.errors import InputError
from rmjax.core.files import write_together
from rmjax.core.progress import progress_bar
from rmjax.core.sections import INTERVAL_COLUMNS, Measured, Section, Table, interval_cells
from rmjax.core.text import count_of
from rmjax.data.records.formats import Item
from rmjax.data.records.options import DATA_DEFAULTS, ReadOptions
from rmjax.data.records.read import read_items
from rmjax.data.records.sources import Source
from rmjax.data.schema import Comparison
from rmjax.data.tokens.templates import TemplateReport
from rmjax.evaluation.comparison import ModelComparison, compare_scores
from rmjax.evaluation.measures.labels import label_values, measure_attributes, measure_steps
from rmjax.evaluation.measures.mistakes import suspicious_labels, worst_mistakes
from rmjax.evaluation.measures.preferences import measure_preferences
from rmjax.evaluation.measures.rankings import measure_rankings
from rmjax.evaluation.measures.uncertainty import measure_uncertainty
from rmjax.evaluation.pipeline import RewardPipeline, prediction_line, score_chunks, template_lines
from rmjax.evaluation.robustness import CHANGES, check_changes, measure_robustness
from rmjax.evaluation.scores import FEW_PROMPTS, Scores, clusters, prompt_ids, prompt_text
from rmjax.metrics.pairs import pair_metrics
from rmjax.metrics.subsets import subset_metrics, subsets
from rmjax.models import card

# Metrics of the headline; those of subsets are the first of these that a subset has.
_HEADLINE = (
    *("accuracy", "accuracy_ceiling", "loss", "margin", "calibration_error", "temperature"),
    *("kendall", "top1_accuracy", "regret", "mse", "mse_floor", "pearson", "spearman", "auc"),
    *("first_error_f1", "prm_score", "reward_mean", "reward_std", "chosen_reward_mean", "rejected_reward_mean"),
    *("reward_length_spearman_within", "accuracy_longer_chosen", "accuracy_shorter_chosen"),
)
_MAIN = ("accuracy", "spearman")  # of a subset
_SUBSETS = 20  # in the headline; all are in metrics.json and in the report


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
      metrics: `comparisons`, `not_scored`, `prompts`, and the metrics by name, those of a subset as `SUBSET/NAME`;
        `NAME_low` and `NAME_high` are the bounds of the 95 % bootstrap interval over prompts (`scores.clusters`).
      predictions: a line per item: the record's fields and `rewards` or `error`.
      sections: the report's sections, with tables, figures and examples.
      suspicious: labels that the model contradicts with confidence (`mistakes.suspicious_labels`).
      scores: the scored comparisons.
      notes: the use of the records' fields; what the chat template adds of its own, and leaves out of the data.
      facts: of the model (`models.card.facts`).
    """

    title: str
    metrics: dict[str, float]
    predictions: list[dict[str, Any]]
    sections: tuple[Section, ...]
    suspicious: list[dict[str, Any]]
    scores: Scores
    notes: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def headline(self) -> list[tuple[str, str]]:
        """The main metrics as (name, text) rows."""
        rows = [("comparisons", f"{self.metrics['comparisons']:,}")]
        if self.metrics["not_scored"]:
            rows.append(("not scored (see `error` in predictions.jsonl)", f"{self.metrics['not_scored']:,}"))
        few = " (so few that intervals are over comparisons)" if self.metrics["prompts"] < FEW_PROMPTS else ""
        rows.append(("prompts", f"{self.metrics['prompts']:,}{few}"))
        of_subsets = [f"{subset}/{name}" for subset in self._subsets() for name in self._main_metric(subset)]
        robust = [f"robustness/{name}/{key}" for name in CHANGES for key in ("change", "flips", "hacked")]
        names = [*(name for name in (*_HEADLINE, *robust) if name in self.metrics), *of_subsets[:_SUBSETS]]
        return rows + [(name, self._text(name)) for name in names]

    def _subsets(self) -> list[str]:
        return list(subsets([comparison.subset for comparison in self.scores.comparisons]))

    def _main_metric(self, subset: str) -> list[str]:
        return [name for name in _MAIN if f"{subset}/{name}" in self.metrics][:1]

    def _text(self, name: str) -> str:
        value, low, high = interval_cells(self.metrics, name)
        return f"{value:.4f}" + ("" if low is None or high is None else f" (95 %: {low:.4f} to {high:.4f})")

    def compare(self, other: "Evaluation") -> ModelComparison:
        """Returns the comparison with another model's evaluation on the same data; see `comparison.compare_scores`."""
        return compare_scores(self.scores, other.scores)

    def with_comparison(self, found: ModelComparison) -> "Evaluation":
        """Returns the evaluation with the metrics of a comparison as `compare/NAME`, and its section."""
        metrics = self.metrics | {f"compare/{name}": value for name, value in found.metrics.items()}
        return dataclasses.replace(self, metrics=metrics, sections=(*self.sections, found.section))

    def save(self, directory: pathlib.Path | str) -> None:
        """Writes metrics.json, predictions.jsonl, suspicious.jsonl and report.html to `directory`, created if missing.

        Without metrics.json the others are incomplete: the program was killed.
        """
        path = pathlib.Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        lines = lambda values: "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        files = {
            "metrics.json": json.dumps(self.metrics, indent=2) + "\n",
            "predictions.jsonl": lines(self.predictions),
            "suspicious.jsonl": lines(self.suspicious),
            "report.html": report.render(self.title, self.facts, self.headline, self.sections, self.notes),
        }
        write_together(path, files)

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self.headline)
        return "\n".join((*(f"{name:<{width}}  {value}" for name, value in self.headline), *self.notes))

    def _repr_html_(self) -> str:
        return report.render_body(self.headline, self.sections, self.notes)


def evaluate(
    pipeline: RewardPipeline,
    items: Sequence[Item],
    *,
    title: str = "",
    notes: Sequence[str] = (),
    robustness: Sequence[str] = (),
    progress: bool = True,
) -> Evaluation:
    """Scores items and computes the metrics of their labels.

    Items that cannot be scored (for example too long) are counted in the metrics and have `error` in the predictions.
    `notes` about the data are the first of the evaluation's notes. `robustness` names changes of the responses with
    which they are scored again (`robustness.CHANGES`).

    Raises:
      InputError: no item could be scored, no scored comparison has a preference or a label, or `robustness` names what
        is not there.
    """
    check_changes(robustness)
    template = TemplateReport()
    predictions, scores, prompts = _score(pipeline, items, template, progress)
    if not scores.comparisons:
        errors = [line["error"] for line in predictions if "error" in line]
        first = f"; the first error: {errors[0]}" if errors else "; the data has no records"
        raise InputError(f"none of {count_of(len(items), 'record')} could be scored{first}")
    metrics = compute_metrics(scores)
    if not metrics:
        names = sorted({name for comparison in scores.comparisons for name in comparison.attributes})
        raise InputError(
            "no scored comparison has a known preference or a label of the model's attributes "
            f"({', '.join(pipeline.attributes)}; the data has {', '.join(names) or 'none'}); for unlabeled data use "
            "rmjax.score"
        )
    of_subsets = [comparison.subset for comparison in scores.comparisons]
    metrics |= subset_metrics(of_subsets, lambda members: compute_metrics(scores.select(members)))
    measured = [_subset_table(metrics, list(subsets(of_subsets))), *_measure(scores, metrics)]
    if _has_preferences(scores):
        weights = np.asarray(pipeline.scorer.model.head.merge_weights)
        measured.append(measure_uncertainty(scores.with_edges(), weights))
    if robustness:
        measured.append(measure_robustness(pipeline, scores, robustness, progress=progress))
    for part in measured:
        metrics |= part.metrics
    counts = {"comparisons": len(scores.comparisons), "not_scored": len(items) - len(scores.comparisons)}
    counts["prompts"] = prompts
    sections = [section for part in measured for section in part.sections]
    suspicious: list[dict[str, Any]] = []
    if _has_preferences(scores):
        ranked = scores.with_edges()
        sections.append(worst_mistakes(ranked))
        suspicious = suspicious_labels(ranked, metrics["temperature"])
    notes = (*notes, *template_lines(pipeline, template))
    facts = tuple(card.facts(pipeline.metadata))
    return Evaluation(title, counts | metrics, predictions, tuple(sections), suspicious, scores, notes, facts)


def _score(
    pipeline: RewardPipeline, items: Sequence[Item], template: TemplateReport, progress: bool
) -> tuple[list[dict[str, Any]], Scores, int]:
    """Returns the lines of predictions.jsonl, the scores of the scored comparisons, and their number of prompts."""
    predictions: list[dict[str, Any]] = []
    comparisons: list[Comparison] = []
    found: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    lengths: list[np.ndarray | None] = []
    with progress_bar(len(items), "scoring", "record", disable=not progress) as bar:
        for chunk in score_chunks(pipeline, items, bar, template, lengths):
            for item, rewards in chunk:
                length = lengths[len(predictions)]
                predictions.append(prediction_line(item, rewards, pipeline.attributes))
                if isinstance(item, Comparison) and not isinstance(rewards, str) and length is not None:
                    comparisons.append(item)
                    found.append(rewards)
                    tokens.append(length)
    merged = [pipeline.merge(rewards) for rewards in found]
    prompts = [prompt_text(comparison) for comparison in comparisons]
    distinct = list(dict.fromkeys(prompts))
    encoded = pipeline.tokenizer.encode_texts(distinct, [False] * len(distinct)) if distinct else []
    of_prompt = {text: len(ids) if text else 0 for text, ids in zip(distinct, encoded, strict=True)}
    tokens = [np.maximum(each - of_prompt[text], 0) for each, text in zip(tokens, prompts, strict=True)]
    scores = Scores(comparisons, found, merged, tokens, clusters(prompts), pipeline.attributes)
    return predictions, scores, len(np.unique(prompt_ids(prompts)))


def compute_metrics(scores: Scores) -> dict[str, float]:
    """Returns the metrics of the labels that comparisons have: preferences, attributes, steps."""
    metrics: dict[str, float] = {}
    if _has_preferences(scores):
        ranked = scores.with_edges()
        edges = [comparison.edges for comparison in ranked.comparisons]
        ceilings = [comparison.ceiling for comparison in ranked.comparisons]
        metrics |= pair_metrics(ranked.merged, edges, ceilings, ranked.prompts.tolist())
    for steps in (False, True):
        metrics |= label_values(scores, steps=steps)
    return metrics


def _has_preferences(scores: Scores) -> bool:
    return any(edge.target != 0.5 for comparison in scores.comparisons for edge in comparison.edges)


def _measure(scores: Scores, metrics: dict[str, float]) -> list[Measured]:
    """Returns what is reported of all comparisons together beyond `compute_metrics`, which gave `metrics`."""
    found = []
    if _has_preferences(scores):
        ranked = scores.with_edges()
        found += [measure_preferences(ranked, metrics), measure_rankings(ranked)]
    return [*found, measure_attributes(scores, metrics), measure_steps(scores, metrics)]


def _subset_table(metrics: dict[str, float], names: Sequence[str]) -> Measured:
    rows = []
    for subset in names:
        for name in [name for name in _MAIN if f"{subset}/{name}" in metrics][:1]:
            rows.append((subset, name, *interval_cells(metrics, f"{subset}/{name}")))
    table = Table("Main metric of each subset", ("subset", "metric", *INTERVAL_COLUMNS), tuple(rows))
    return Measured({}, (Section("Subsets", tables=(table,)),) if rows else ())
