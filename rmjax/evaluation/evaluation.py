"""A model's evaluation on labelled data: predictions, metrics and report, in a directory."""

import itertools
import json
import pathlib
from collections.abc import Sequence

import numpy as np
import tqdm

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.data import synthetic
from rmjax.data.formats import BadRecord, iterate
from rmjax.data.schema import Comparison
from rmjax.data.tokenisation import SYNTHETIC
from rmjax.evaluation import report
from rmjax.evaluation.metrics import edge_table, pair_metrics
from rmjax.evaluation.offline import Item, Judge, predict, prediction


def read_labelled(
    sources: Sequence[str], format: str, *, strings: str, limit: int = 0, on_bad_record: str = "error"
) -> list[Item]:
    """Reads the data to evaluate on, in input order.

    Raises:
      InputError: a record cannot be used and `on_bad_record` is `error`; names the file and the line.
    """
    if list(sources) == [SYNTHETIC]:
        return list(synthetic.comparisons("validation", limit or configs.default().data.synthetic_validation))
    items = list(itertools.islice(iterate(sources, format, strings=strings), limit or None))
    bad = next((item for item in items if isinstance(item, BadRecord)), None)
    if bad is not None and on_bad_record == "error":
        raise InputError(f"{bad.where}: {bad.reason} (or set --on_bad_record=skip)")
    return items


def evaluate(judge: Judge, items: Sequence[Item], output: pathlib.Path, *, title: str) -> list[tuple[str, str]]:
    """Scores `items` and writes metrics.json, predictions.jsonl and report.html.

    Comparisons that cannot be scored (too long, say) are counted, in the metrics and in the headline, and have `error`
    in predictions.jsonl.

    Returns:
      The headline table: (name, value as text).

    Raises:
      InputError: the model has several rewards, or nothing could be scored.
    """
    if len(judge.attributes) != 1:
        raise InputError(f"the model gives {len(judge.attributes)} rewards a response ({', '.join(judge.attributes)}); "
                         "evaluate needs one: use rmjax.score for the others")  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    scored: list[tuple[Comparison, np.ndarray]] = []
    bar = tqdm.tqdm(total=len(items), desc="scoring", unit="record", dynamic_ncols=True)
    with bar, open(output / "predictions.jsonl", "w", encoding="utf-8") as file:
        for chunk in predict(judge, items, bar):
            for item, rewards in chunk:
                file.write(json.dumps(prediction(item, rewards, judge.attributes), ensure_ascii=False) + "\n")
            scored += [(item, rewards[:, 0]) for item, rewards in chunk if not isinstance(rewards, str)]
    rewards, edges = [values for _, values in scored], [item.edges for item, _ in scored]
    table = edge_table(rewards, edges)
    metrics = pair_metrics(rewards, edges, [item.ceiling for item, _ in scored])
    counts = {"comparisons": len(scored), "not_scored": len(items) - len(scored)}
    (output / "metrics.json").write_text(json.dumps(counts | metrics, indent=2) + "\n")
    headline = _headline(counts, metrics)
    (output / "report.html").write_text(report.render(title, headline, table), encoding="utf-8")
    return headline


def _headline(counts: dict[str, int], metrics: dict[str, float]) -> list[tuple[str, str]]:
    interval = f"{metrics['accuracy']:.4f} (95 %: {metrics['accuracy_low']:.4f} to {metrics['accuracy_high']:.4f})"
    rows = [("comparisons", f"{counts['comparisons']:,}"), ("accuracy", interval)]
    if counts["not_scored"]:
        rows.insert(1, ("not scored (see `error` in predictions.jsonl)", f"{counts['not_scored']:,}"))
    if "accuracy_ceiling" in metrics:
        rows.append(("accuracy_ceiling", f"{metrics['accuracy_ceiling']:.4f}"))
    shown = ("loss", "margin", "chosen_reward_mean", "rejected_reward_mean", "reward_mean", "reward_std",
             "calibration_error")  # fmt: skip
    return rows + [(name, f"{metrics[name]:.4f}") for name in shown]
