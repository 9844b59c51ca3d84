"""The report of a run, training_report.html of the workdir: its best checkpoint, learning curves, throughput."""

import statistics
from collections.abc import Sequence
from typing import Any

from rmjax.core import report
from rmjax.core.config import Config, selection_metric
from rmjax.core.files import write_atomic
from rmjax.core.sections import Figure, Section, metric_table
from rmjax.models import card
from rmjax.models.workdir import Workdir
from rmjax.training.figures import Series, add_points, learning_plots
from rmjax.training.logging import read_metrics

_RISE = 0.02  # share by which the last validation loss exceeds the lowest one of an overfitted run


def write(workdir: Workdir, config: Config, step: int, lines: Sequence[str]) -> None:
    """Writes the report of a run that is complete at `step`.

    Args:
      lines: what was printed about the data at the start: the sources, and the records that were dropped.
    """
    history, best_step = read_metrics(workdir.metrics_file, step), workdir.best_step()
    metrics = workdir.validation_metrics(best_step) or {}
    metadata = workdir.head().to_json() | {
        "source": config.model.path or "random initialization",
        "source_step": best_step,
        "validation_data": list(config.data.validation),
        "max_length": config.data.max_length,
        "pooling": config.data.readout,
    }
    training = [line for line in history if line["split"] == "train"]
    validation = [line for line in history if line["split"] == "validation"]
    series: Series = {}
    for line in history:
        add_points(series, line["step"], line["split"], line)
    best = selection_metric(metrics, config.checkpoint.best) if metrics else ""
    headline = [("steps", f"{step:,}"), ("best checkpoint", f"step {best_step:,}")]
    headline += [(f"validation {best}", f"{metrics[best]:.4f}")] if best else []
    for name in ("tokens_per_second", "comparisons_per_second"):
        if values := [line[name] for line in training if name in line]:
            headline.append((f"{name.replace('_', ' ')} (median)", f"{statistics.median(values):,.0f}"))
    plots = tuple(learning_plots(series))
    figures = (Figure("learning-curve", plots, "Training metrics are moving means."),) if plots else ()
    sections = [
        Section("Learning curves", describe_overfitting(training, validation), figures=figures),
        Section("Validation at the best checkpoint", tables=(metric_table("Metrics", metrics),) if metrics else ()),
        Section("Data", "\n\n".join(lines)),
    ]
    page = report.render(str(workdir), card.facts(metadata), headline, sections, kind="Training")
    write_atomic(workdir.path / "training_report.html", page)


def describe_overfitting(training: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]]) -> str:
    """Returns whether the validation loss rose after its minimum while the training loss fell.

    Args:
      training, validation: lines of metrics.jsonl, in the order of their steps.
    """
    losses = [(line["step"], line["loss"]) for line in validation if "loss" in line]
    if len(losses) < 2:
        return "Validated less than twice: whether the run overfits is not known."
    (step, lowest), (last_step, last) = min(losses, key=lambda found: found[1]), losses[-1]
    if last <= lowest * (1 + _RISE):
        return (
            f"No overfitting: the validation loss ends at {last:.4f}, within {_RISE:.0%} of its minimum {lowest:.4f} "
            f"(step {step:,})."
        )
    before = [line["loss"] for line in training if line["step"] <= step and "loss" in line][-20:]
    after = [line["loss"] for line in training if line["step"] > step and "loss" in line][-20:]
    text = f"the validation loss rose from {lowest:.4f} at step {step:,} to {last:.4f} at step {last_step:,}"
    if before and after and statistics.fmean(after) < statistics.fmean(before):
        return (
            f"Overfitting: {text}, while the training loss fell from {statistics.fmean(before):.4f} to "
            f"{statistics.fmean(after):.4f}. Train fewer epochs, or with more data or weight decay; the best "
            "checkpoint is from before."
        )
    return f"Not converged: {text}, and the training loss did not fall. Lower the learning rate."
