"""JudgeBench (Tan et al. 2024, arXiv 2410.12784): objectively labelled pairs of four sources."""

from collections.abc import Sequence

import numpy as np

from rmjax.data.records.fields import BadField
from rmjax.data.schema import Record
from rmjax.evaluation.suites.suite import Published, Statistic, Suite, Task, choose, field, mean_of

SOURCES = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")
_LABELS = {"A>B": "A>B", "B>A": "B>A"}


def _part(record: Record, source: str) -> str:
    choose(field(record, "label"), _LABELS, "label")
    given = field(record, "source")
    names = [name for name in SOURCES if given.startswith(name)]
    if not names:
        raise BadField(f"source is {given!r:.60}; expected one that begins with {', '.join(SOURCES)}")
    return names[0]


def verdict(rewards: np.ndarray) -> str:
    """Returns `A>B` if the first of two rewards is higher, else `B>A`, also for a tie; "" if one is missing.

    >>> verdict(np.array([1.0, 1.0]))
    'B>A'
    """
    if np.isnan(rewards).any():
        return ""
    return "A>B" if rewards[0] > rewards[1] else "B>A"


def _rule(tasks: Sequence[Task], threshold: float | None) -> Statistic:
    right = np.array([verdict(task.rewards) == task.record["label"] for task in tasks], np.float64)
    parts = np.array([task.part for task in tasks])
    index = {name: np.flatnonzero(parts == name) for name in SOURCES}

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        found = {name.replace("-", "_"): mean_of(weights, right[rows], rows) for name, rows in index.items()}
        return {"score": mean_of(weights, right, np.arange(len(right)))} | found

    return compute


JUDGEBENCH = Suite(
    name="judgebench",
    title="JudgeBench",
    published=(Published("gpt", "ScalerLab/JudgeBench:gpt", 350),),
    format=lambda record: "judgebench",
    part=_part,
    published_set=lambda part: "gpt",
    rule=_rule,
    sections={"score": "Score"} | {name.replace("-", "_"): name for name in SOURCES},
    description=(
        "The score is the accuracy over all pairs, whatever their source. The verdict is A>B if A has the higher "
        "reward, else B>A: a tie counts as B>A, so it is right for the pairs with that label."
    ),
    differences=(
        "The official code gives reward models each pair once (--single_game), as here; prompted judges see both "
        "orders, so their scores differ in kind.",
        "Some papers average over sources; that number is not this score.",
        "The split `claude` (270 pairs) is another set: give it as --data.",
        "A pair of which a response could not be scored is wrong here.",
    ),
)
