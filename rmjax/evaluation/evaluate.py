"""Evaluation of a reward model on labeled data: metrics, predictions and a report."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np
import tqdm

from rmjax.core.errors import InputError
from rmjax.data.records.formats import Item
from rmjax.data.records.options import DATA_DEFAULTS, ReadOptions
from rmjax.data.records.read import read_items
from rmjax.data.schema import Comparison
from rmjax.data.tokens.dataset import align_labels
from rmjax.evaluation.pipeline import RewardPipeline, prediction_line, score_chunks
from rmjax.evaluation.report import render
from rmjax.metrics.edges import edge_table
from rmjax.metrics.labels import label_metrics
from rmjax.metrics.pairs import pair_metrics
from rmjax.metrics.subsets import subset_metrics

ScoredComparison = tuple[Comparison, np.ndarray]  # with its rewards float32 [R, A]


def read_evaluation_data(
    sources: Sequence[str], options: ReadOptions, *, limit: int = 0, on_bad_record: str = "error"
) -> list[Item]:
    """Returns the items of `read_items`, which documents the errors; of the built-in data, the validation split."""
    options = dataclasses.replace(options, limit=limit, on_bad_record=on_bad_record)
    size = limit or DATA_DEFAULTS.synthetic_validation
    return read_items(sources, options, split="validation", synthetic_size=size)[0]


def evaluate(
    pipeline: RewardPipeline, items: Sequence[Item], output: pathlib.Path, *, title: str
) -> list[tuple[str, str]]:
    """Writes metrics.json, predictions.jsonl and report.html to `output`; returns the headline, (name, text) rows.

    Items that cannot be scored (for example too long) are counted in the metrics and have `error` in predictions.jsonl.

    Raises:
      InputError: no item could be scored, or no scored comparison has a preference or a label.
    """
    output.mkdir(parents=True, exist_ok=True)
    scored: list[ScoredComparison] = []
    bar = tqdm.tqdm(total=len(items), desc="scoring", unit="record", dynamic_ncols=True)
    with bar, open(output / "predictions.jsonl", "w", encoding="utf-8") as file:
        for item, rewards in (pair for chunk in score_chunks(pipeline, items, bar) for pair in chunk):
            file.write(json.dumps(prediction_line(item, rewards, pipeline.attributes), ensure_ascii=False) + "\n")
            if isinstance(item, Comparison) and not isinstance(rewards, str):
                scored.append((item, rewards))
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
    (output / "metrics.json").write_text(json.dumps(counts | metrics, indent=2) + "\n")
    headline = _headline(counts, metrics)
    table = edge_table(*_ranked(pipeline, scored)) if "accuracy_low" in metrics else None
    (output / "report.html").write_text(render(title, headline, table), encoding="utf-8")
    return headline


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


def _headline(counts: dict[str, int], metrics: dict[str, float]) -> list[tuple[str, str]]:
    rows = [("comparisons", f"{counts['comparisons']:,}")]
    if counts["not_scored"]:
        rows.append(("not scored (see `error` in predictions.jsonl)", f"{counts['not_scored']:,}"))
    for name, value in metrics.items():
        if name == "accuracy" and "accuracy_low" in metrics:
            interval = f"{metrics['accuracy_low']:.4f} to {metrics['accuracy_high']:.4f}"
            rows.append((name, f"{value:.4f} (95 %: {interval})"))
        elif not name.endswith(("accuracy_low", "accuracy_high")):
            rows.append((name, f"{value:.4f}"))
    return rows
