"""A model's evaluation on labelled data: predictions, metrics and report, in a directory."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np
import tqdm

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.data.records import synthetic
from rmjax.data.records.formats import iterate_comparisons, normalize_step_labels
from rmjax.data.records.parsers import ReadOptions
from rmjax.data.records.sources import BadRecord
from rmjax.data.schema import Comparison
from rmjax.data.tokens.dataset import align_labels
from rmjax.data.tokens.load import SYNTHETIC
from rmjax.evaluation import report
from rmjax.evaluation.pipeline import Item, RewardPipeline, predict, prediction
from rmjax.metrics.attributes import label_metrics
from rmjax.metrics.edges import EdgeTable, edge_table
from rmjax.metrics.pairs import pair_metrics
from rmjax.metrics.steps import step_metrics
from rmjax.metrics.subsets import subsets

Scored = tuple[Comparison, np.ndarray]  # a comparison and its rewards float32 [R, A]


def read_labelled(
    sources: Sequence[str], options: ReadOptions, *, limit: int = 0, on_bad_record: str = "error"
) -> list[Item]:
    """Reads the data to evaluate on, in input order.

    Raises:
      InputError: a record cannot be used and `on_bad_record` is `error`; names the file and the line.
    """
    if list(sources) == [SYNTHETIC]:
        size = limit or configs.default().data.synthetic_validation
        return list(synthetic.comparisons("validation", size, options.format))
    items = [
        item
        for source in sources
        for item in normalize_step_labels(list(iterate_comparisons(source, options)), options)
    ]
    bad = next((item for item in items if isinstance(item, BadRecord) and not item.tied), None)
    if bad is not None and on_bad_record == "error":
        raise InputError(f"{bad.where}: {bad.reason} (or set --on_bad_record=skip)")
    return items[: limit or None]


def evaluate(
    pipeline: RewardPipeline, items: Sequence[Item], output: pathlib.Path, *, title: str
) -> list[tuple[str, str]]:
    """Scores `items` and writes metrics.json, predictions.jsonl and report.html.

    Comparisons that cannot be scored (too long, say) are counted, in the metrics and in the headline, and have `error`
    in predictions.jsonl.

    Returns:
      The headline table: (name, value as text).

    Raises:
      InputError: nothing could be scored, or nothing is known of what was.
    """
    output.mkdir(parents=True, exist_ok=True)
    scored: list[Scored] = []
    bar = tqdm.tqdm(total=len(items), desc="scoring", unit="record", dynamic_ncols=True)
    with bar, open(output / "predictions.jsonl", "w", encoding="utf-8") as file:
        for chunk in predict(pipeline, items, bar):
            for item, rewards in chunk:
                file.write(json.dumps(prediction(item, rewards, pipeline.attributes), ensure_ascii=False) + "\n")
            scored += [(item, rewards) for item, rewards in chunk if not isinstance(rewards, str)]
    metrics = metrics_of(pipeline, scored)
    if not metrics:
        names = sorted({name for item, _ in scored for name in item.attributes})
        raise InputError(
            f"no comparison that could be scored has a known preference, nor a label of the model's "
            f"attributes ({', '.join(pipeline.attributes)}; the data has {', '.join(names) or 'none'}); for "
            "unlabelled data use rmjax.score"
        )
    for name, members in subsets([item.subset for item, _ in scored]).items():
        found = metrics_of(pipeline, [scored[i] for i in members])
        metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
    counts = {"comparisons": len(scored), "not_scored": len(items) - len(scored)}
    (output / "metrics.json").write_text(json.dumps(counts | metrics, indent=2) + "\n")
    headline = _headline(counts, metrics)
    table = _edges(pipeline, scored) if "accuracy_low" in metrics else None
    (output / "report.html").write_text(report.render(title, headline, table), encoding="utf-8")
    return headline


def metrics_of(pipeline: RewardPipeline, scored: Sequence[Scored]) -> dict[str, float]:
    """Returns the metrics of comparisons by what is known of them: preferences, attributes, steps."""
    metrics: dict[str, float] = {}
    ranked = [(item, rewards) for item, rewards in scored if item.edges]
    labelled = [(item, rewards) for item, rewards in scored if item.labels is not None]
    if any(edge.target != 0.5 for item, _ in ranked for edge in item.edges):
        rewards, edges = [pipeline.merged(values) for _, values in ranked], [item.edges for item, _ in ranked]
        metrics |= pair_metrics(rewards, edges, [item.ceiling for item, _ in ranked])
    for steps in (False, True):
        members = [(item, rewards) for item, rewards in labelled if bool(item.steps) == steps]
        if not members:
            continue
        rewards = np.concatenate([values for _, values in members])
        labels = np.concatenate([_by_name(pipeline, item) for item, _ in members])
        found = (
            step_metrics(rewards[:, 0], labels[:, 0]) if steps else label_metrics(rewards, labels, pipeline.attributes)
        )
        metrics |= found
        if found and not np.isnan(ceiling := [item.ceiling for item, _ in members]).any():
            metrics["accuracy_ceiling" if steps else "mse_floor"] = float(np.mean(ceiling))
    return metrics


def _by_name(pipeline: RewardPipeline, item: Comparison) -> np.ndarray:
    """Returns the labels [R, A] in the order of the head's attributes, NaN where the data has no such one."""
    # A step's one label belongs to the head's first reward, whatever that is called.
    return align_labels(item.labels, pipeline.attributes[:1] if item.steps else item.attributes, pipeline.attributes)


def _edges(pipeline: RewardPipeline, scored: Sequence[Scored]) -> EdgeTable:
    ranked = [(item, rewards) for item, rewards in scored if item.edges]
    return edge_table([pipeline.merged(rewards) for _, rewards in ranked], [item.edges for item, _ in ranked])


def _headline(counts: dict[str, int], metrics: dict[str, float]) -> list[tuple[str, str]]:
    rows = [("comparisons", f"{counts['comparisons']:,}")]
    if counts["not_scored"]:
        rows.append(("not scored (see `error` in predictions.jsonl)", f"{counts['not_scored']:,}"))
    bounds = ("accuracy_low", "accuracy_high")
    for name, value in metrics.items():
        if name == "accuracy" and bounds[0] in metrics:
            rows.append((name, f"{value:.4f} (95 %: {metrics[bounds[0]]:.4f} to {metrics[bounds[1]]:.4f})"))
        elif not name.endswith(bounds):
            rows.append((name, f"{value:.4f}"))
    return rows
