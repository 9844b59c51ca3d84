"""PPE (Frick et al. 2024, arXiv 2410.14872): human preferences, and the correctness of 32 responses to a prompt.

Axis letters: n tasks, S resamples, K responses of a prompt.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from rmjax.data.records.fields import BadField
from rmjax.data.schema import Record
from rmjax.evaluation.suites.suite import (
    Published,
    Statistic,
    Suite,
    Task,
    average,
    choose,
    field,
    mean_of,
    members,
    ratio_of,
)
from rmjax.metrics.best_of_n import best_of_n
from rmjax.metrics.correlation import auc

HUMAN = "human"
SETS = ("mmlu-pro", "math", "gpqa", "mbpp-plus", "ifeval")  # of correctness
FLAGS = ("hard_prompt", "easy_prompt", "if_prompt", "math_prompt", "is_code", "is_refusal")
_WINNERS = {"model_a": "0", "model_b": "1", "tie": "", "tie (bothbad)": "", "both_bad": ""}
_PUBLISHED = (
    Published(HUMAN, "lmarena-ai/PPE-Human-Preference-V1:test", 16038),
    Published("mmlu-pro", "lmarena-ai/PPE-MMLU-Pro-Best-of-K", 512),
    Published("math", "lmarena-ai/PPE-MATH-Best-of-K", 512),
    Published("gpqa", "lmarena-ai/PPE-GPQA-Best-of-K", 512),
    Published("mbpp-plus", "lmarena-ai/PPE-MBPP-Plus-Best-of-K", 507),
    Published("ifeval", "lmarena-ai/PPE-IFEval-Best-of-K", 512),
)


def _is_human(record: Record) -> bool:
    return record.get("winner") is not None


def _is_pair(value: Any, count: int) -> bool:
    known = lambda index: isinstance(index, int) and 0 <= index < count
    return isinstance(value, list) and len(value) == 2 and all(map(known, value))


def _part(record: Record, source: str) -> str:
    if _is_human(record):
        choose(field(record, "winner"), _WINNERS, "winner")
        return HUMAN
    values = record.get("scores")
    if not isinstance(values, list) or not values:
        raise BadField("expected winner (human preferences) or scores, a boolean per response (correctness)")
    responses = sum(record.get(f"response_{k}") is not None for k in range(1, len(values) + 1))
    if responses != len(values):
        raise BadField(
            f"scores has {len(values)} entries, but {responses} of response_1 to response_{len(values)} are there"
        )
    pairs = record.get("sampled_conflict_pairs")
    if not isinstance(pairs, list) or not all(_is_pair(pair, len(values)) for pair in pairs):
        raise BadField(f"sampled_conflict_pairs is not a list of pairs of responses, 0 to {len(values) - 1}")
    words = re.sub("[^a-z0-9]+", "-", source.lower())
    names = [name for name in SETS if name in words]
    if not names:
        raise BadField(
            f"which of the sets {', '.join(SETS)} this is does not follow from the source {source!r}; name it, such as "
            "--data=gpqa=FILE"
        )
    return names[0]


def _human(tasks: Sequence[Task], rows: np.ndarray) -> Statistic:
    winners = [_WINNERS[tasks[i].record["winner"]] for i in rows]
    rows = np.array([i for i, winner in zip(rows, winners, strict=True) if winner], np.int64)
    first = np.array([int(winner) for winner in winners if winner], np.int64)
    right = np.array([tasks[i].rewards[w] > tasks[i].rewards[1 - w] for i, w in zip(rows, first, strict=True)], bool)
    flagged = {name: np.array([bool(tasks[i].record.get(name)) for i in rows], bool) for name in FLAGS}
    english = np.array([tasks[i].record.get("language") == "English" for i in rows], bool)
    groups = flagged | {"english": english, "other_languages": ~english}

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        parts = {f"human/{name}": mean_of(weights, right[chosen], rows[chosen]) for name, chosen in groups.items()}
        return {"human": mean_of(weights, right, rows)} | parts

    return compute


def _correctness(name: str, tasks: Sequence[Task], rows: np.ndarray) -> Statistic:
    """Returns the statistic of one set: accuracy on conflict pairs, ROC AUC, and the best-of-k curve."""
    # A response that could not be scored has the reward -inf, as errors have in the published results.
    rewards = [np.nan_to_num(tasks[i].rewards, nan=-np.inf, neginf=-np.inf) for i in rows]
    correct = [np.array([bool(value) for value in tasks[i].record["scores"]], np.float64) for i in rows]
    hits, pairs = np.zeros(len(rows)), np.zeros(len(rows))
    for k, i in enumerate(rows):
        for a, b in tasks[i].record["sampled_conflict_pairs"]:
            if correct[k][a] != correct[k][b]:
                good, bad = (a, b) if correct[k][a] > correct[k][b] else (b, a)
                hits[k] += rewards[k][good] > rewards[k][bad]
                pairs[k] += 1
    size = min(map(len, rewards))
    sizes = range(1, size + 1)
    curves = np.stack([best_of_n(x, y, sizes) for x, y in zip(rewards, correct, strict=True)])
    owner = np.repeat(np.arange(len(rows)), [len(each) for each in rewards])
    area = auc(np.concatenate(rewards), np.concatenate(correct) > 0)

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        mine = weights[:, rows]
        curve = mine @ curves / mine.sum(1, keepdims=True)
        return {
            f"{name}": ratio_of(weights, hits, pairs, rows),
            f"{name}/auc": area(mine[:, owner]),
            f"{name}/best_of_k_max": curve.max(1),
            f"{name}/best_of_k_end": curve[:, -1],
            f"{name}/best_of_1": curve[:, 0],
        }

    return compute


def _rule(tasks: Sequence[Task], threshold: float | None) -> Statistic:
    human = members(tasks, HUMAN)
    sets = {name: rows for name in SETS if len(rows := members(tasks, name))}
    statistics = [_correctness(name.replace("-", "_"), tasks, rows) for name, rows in sets.items()]
    if len(human):
        statistics.append(_human(tasks, human))

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample may lack a set
            for statistic in statistics:
                found |= statistic(weights)
        nothing = np.full(len(weights), np.nan)
        means = {"correctness": average([found.get(name.replace("-", "_"), nothing) for name in SETS])}
        for kind in ("auc", "best_of_k_max", "best_of_k_end"):
            means[f"correctness/{kind}"] = average([found.get(f"{x.replace('-', '_')}/{kind}", nothing) for x in SETS])
        score = average([found.get(HUMAN, nothing), means["correctness"]])
        return {"score": score} | means | found

    return compute


PPE = Suite(
    name="ppe",
    title="PPE",
    published=_PUBLISHED,
    format=lambda record: "arena" if _is_human(record) else "ppe",
    part=_part,
    published_set=lambda part: part,
    rule=_rule,
    sections={
        "score": "Mean of human and correctness (rmjax's)",
        "human": "Human preference",
        "correctness": "Correctness, mean of sets",
    }
    | {name.replace("-", "_"): name for name in SETS},
    description=(
        "Human: accuracy on Chatbot Arena's pairs, ties of the humans left out, a tie of the rewards wrong. "
        "Correctness: of each set of 32 responses to a prompt, the accuracy on the sampled pairs of a correct and an "
        "incorrect response; auc is the area under the ROC curve of reward against correctness over all responses; "
        "best_of_k_max and best_of_k_end are the highest and the last value of the curve of the mean correctness of "
        "the best of k, k = 1 to 32. PPE publishes no single score: this one is the mean of human and correctness."
    ),
    differences=(
        "The best-of-k curve here is the expectation over all subsets of k responses; the published one depends on the "
        "order or on sampling. Both have the same value at k = 32 if no rewards are tied.",
        "The area under the ROC curve here pools the responses of all prompts.",
        "Model-ranking metrics of the human preferences (Spearman, Kendall, separability, Brier) are not computed.",
        "A response that could not be scored has the reward -inf in correctness sets, as errors have there; a pair of "
        "human preferences with one is wrong.",
    ),
    cluster=lambda record: str(record.get("question_id") or ""),
)
