"""Rankings of three or more responses: rank correlations, and best-of-N against oracle and random choice."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rmjax.core.sections import Figure, Measured, Section, Table, metric_table
from rmjax.evaluation.scores import Scores
from rmjax.metrics.best_of_n import best_of_n, curve_sizes, top_one
from rmjax.metrics.bootstrap import Bootstrap, with_interval
from rmjax.metrics.correlation import kendall_within, spearman_within
from rmjax.metrics.gold import gold_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHARE = 0.9  # of the prompts have as many responses as the largest N of the curve


def measure_rankings(scores: Scores) -> Measured:
    """Returns the metrics of comparisons of three or more responses whose ranking is known; none if there are none.

    `kendall`, `spearman_rank`: means over comparisons of tau-b and of Spearman's correlation.
    `top1_accuracy`: how often the response with the highest reward is a best one; a tie counts by its share.
    `best_of_n/N`: expected gold value of the best of N responses by reward (`best_of_n`); `best_of_n_oracle/N` by gold
    value; `best_of_n_random` of any. `regret`: oracle less reward, for the largest N.

    Args:
      scores: of the comparisons that have edges.
    """
    gold = [_gold(scores, i) for i in range(len(scores.comparisons))]
    kept = [i for i, values in enumerate(gold) if values is not None]
    if not kept:
        return Measured({})
    known = [values for values in gold if values is not None]
    rewards, prompts = [scores.merged[i].astype(np.float64) for i in kept], scores.prompts[kept]
    mean = lambda name, values: _mean(name, np.asarray(values), prompts)
    found = mean("kendall", kendall_within(rewards, known)) | mean("spearman_rank", spearman_within(rewards, known))
    found |= mean("top1_accuracy", [top_one(x, y) for x, y in zip(rewards, known, strict=True)])
    curve, sections = _curve(rewards, known, prompts)
    shown = metric_table("Rank correlations, and the best response found", found)
    text = (
        f"{len(kept):,} comparisons have three or more responses and a known ranking. Gold values are the ratings or "
        "ranks of the data, as far as its preferences show them: the lowest of a prompt is 0."
    )
    table, figure = sections
    return Measured(found | curve, (Section("Rankings", text, (shown, table), (figure,)),))


def _gold(scores: Scores, index: int) -> np.ndarray | None:
    comparison = scores.comparisons[index]
    if len(comparison.conversations) < 3 or len(scores.merged[index]) != len(comparison.conversations):
        return None
    return gold_values(comparison.edges, len(comparison.conversations))


def _mean(name: str, values: np.ndarray, prompts: np.ndarray) -> dict[str, float]:
    return with_interval(name, values.mean(), Bootstrap(prompts).ratio(values, np.ones(len(values))))


def _curve(
    rewards: Sequence[np.ndarray], gold: Sequence[np.ndarray], prompts: np.ndarray
) -> tuple[dict[str, float], tuple[Table, Figure]]:
    """Returns the metrics of best-of-N, their table and figure; over the prompts that have the largest N responses."""
    counts = np.array([len(values) for values in gold])
    largest = int(np.quantile(counts, 1 - _SHARE, method="lower"))
    members, sizes = np.flatnonzero(counts >= largest).tolist(), curve_sizes(largest)
    proxy = np.stack([best_of_n(rewards[i], gold[i], sizes) for i in members])
    oracle = np.stack([best_of_n(gold[i], gold[i], sizes) for i in members])
    found: dict[str, float] = {}
    for k, size in enumerate(sizes[1:], 1):
        found |= _mean(f"best_of_n/{size}", proxy[:, k], prompts[members])
        found |= _mean(f"best_of_n_oracle/{size}", oracle[:, k], prompts[members])
    found |= _mean("best_of_n_random", proxy[:, 0], prompts[members])
    found |= _mean("regret", oracle[:, -1] - proxy[:, -1], prompts[members])
    means = [proxy.mean(0), oracle.mean(0), np.full(len(sizes), proxy[:, 0].mean())]
    rows = tuple((size, *(float(values[k]) for values in means)) for k, size in enumerate(sizes))
    caption = f"Gold value of the best of N responses, mean of {len(members):,} comparisons with {largest} or more"
    table = Table(caption, ("N", "by reward", "oracle", "random"), rows)
    return found, (table, Figure("best-of-n", (functools.partial(_draw_curve, sizes, *means),), caption))


def _draw_curve(sizes: list[int], proxy: np.ndarray, oracle: np.ndarray, random: np.ndarray, axes: "Axes") -> None:
    for values, color, name in ((oracle, "#3a7", "oracle"), (proxy, "#47a", "by reward"), (random, "#999", "random")):
        axes.plot(sizes, values, color=color, marker="o", markersize=3, label=name, gid=name.replace(" ", "-"))
    axes.set(xlabel="N", ylabel="gold value")
    axes.legend()
