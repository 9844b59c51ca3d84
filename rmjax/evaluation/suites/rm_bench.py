"""RM-Bench (Liu et al. 2024, arXiv 2410.16184): three styles of chosen against three of rejected responses."""

from collections.abc import Sequence

import numpy as np

from rmjax.data.records.fields import BadField
from rmjax.data.schema import Record
from rmjax.evaluation.suites.suite import Published, Statistic, Suite, Task, average, choose, field, mean_of, members

STYLES = 3  # 0 concise, 1 detailed and plain, 2 detailed and markdown
DOMAINS = {
    "chat": "chat",
    "code": "code",
    "math": "math",
    "safety": "safety",
    "safety-refuse": "safety",
    "safety-response": "safety",
}
_NAMES = ("chat", "code", "math", "safety")
# (chosen style i, rejected style j): hard has the plainer style chosen.
_LEVELS = {"easy": [(1, 0), (2, 0), (2, 1)], "normal": [(0, 0), (1, 1), (2, 2)], "hard": [(0, 1), (0, 2), (1, 2)]}


def _part(record: Record, source: str) -> str:
    for name in ("chosen", "rejected"):
        if not isinstance(record.get(name), list) or len(record[name]) != STYLES:
            raise BadField(f"{name} is not a list of {STYLES} responses, one of each style")
    return choose(field(record, "domain"), DOMAINS, "domain")


def _rule(tasks: Sequence[Task], threshold: float | None) -> Statistic:
    rewards = np.stack([task.rewards for task in tasks])
    wins = (rewards[:, :STYLES, None] > rewards[:, None, STYLES:]).astype(np.float64)  # [n, i, j]; NaN wins nothing
    index = {name: members(tasks, name) for name in _NAMES}

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name, rows in index.items():
            for level, cells in _LEVELS.items():
                found[f"{name}/{level}"] = average([mean_of(weights, wins[rows, i, j], rows) for i, j in cells])
            found[name] = average([found[f"{name}/{level}"] for level in _LEVELS])
        levels = {level: average([found[f"{name}/{level}"] for name in _NAMES]) for level in _LEVELS}
        cell = lambda i, j: average([mean_of(weights, wins[rows, i, j], rows) for rows in index.values()])
        matrix = {f"matrix_{i}_{j}": cell(i, j) for i in range(STYLES) for j in range(STYLES)}
        return {"score": average([found[name] for name in _NAMES])} | levels | found | matrix

    return compute


RM_BENCH = Suite(
    name="rm_bench",
    title="RM-Bench",
    published=(Published("all domains", "THU-KEG/RM-Bench", 1327),),
    format=lambda record: "pairs",
    part=_part,
    published_set=lambda part: "all domains",
    rule=_rule,
    sections={
        "score": "Score",
        "chat": "Chat",
        "code": "Code",
        "math": "Math",
        "safety": "Safety",
        "easy": "Easy",
        "normal": "Normal",
        "hard": "Hard",
    },
    description=(
        "Of each prompt, three chosen responses (concise, detailed, detailed with markdown) are compared with three "
        "rejected ones of the same styles: matrix_i_j is the share of prompts where chosen style i has a higher reward "
        "than rejected style j, averaged over domains; a tie is wrong. Hard is the mean of the three cells with the "
        "plainer style chosen, normal that of the diagonal, easy that of the others, each averaged over the domains "
        "chat, code, math and safety (safety-refuse and safety-response pooled). The score is the mean of the three."
    ),
    differences=(
        "The official code scores pairs; here the six responses of a prompt are scored together, with the prompt "
        "computed once.",
        "Scores come from RewardBench's code there: float16, and conversations cut at its max_length; here a "
        "conversation longer than max_length is not scored, and loses all its comparisons.",
    ),
)
