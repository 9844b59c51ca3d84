"""Built-in comparisons with known gold rewards, and hence a known best reachable result (`Comparison.ceiling`).

The prompt asks for digits in rising or falling order; the responses are orders of the same digits. The gold reward of a
response is the number of its steps in the requested direction minus the number against it. Counts of tokens do not
predict it: a model has to learn the order, and the direction from the prompt.

* pairs: labels are drawn from the Bradley-Terry model, P(a beats b) = sigmoid(BETA (gold_a - gold_b)), so the best
  accuracy, that of the gold rewards, is the mean of max(p, 1 - p).
* kwise: four responses, ranked by BETA gold + Gumbel noise (Plackett-Luce); any two of them compare as in pairs.
* regression: two attributes, `order` = gold and `start` = the first digit, each with normal noise of standard deviation
  NOISE, so the lowest expected mean squared error is NOISE².
* process: each digit after the first is a step, right if it goes in the requested direction; one label in ten is wrong.

The splits share no comparison at their default sizes, 20,000 and 1,000: validation comparisons that the training split
has too, in any order of responses, are replaced (`_REPLACED`). Larger splits may share some, which training reports.
"""

import dataclasses
import math

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.records.formats import preferences, process, single
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Comparison, Record

BETA = 1.2  # inverse temperature of the preference labels; puts the ceiling of pairs near 0.93
DIGITS = 6  # per response
RESPONSES = 4  # per K-wise comparison
NOISE = 0.5  # standard deviation of the noise of regression labels
FLIPPED = 0.1  # share of wrong step labels
_PROMPTS = {"up": ("Count up:", "Rising:"), "down": ("Count down:", "Falling:")}
_STREAMS = {"train": 0, "validation": 1}
# Indices of the validation comparisons that are drawn from another stream. The responses of regression and process are
# the same; only their labels differ.
_SINGLE = (
    *(23, 45, 52, 65, 87, 93, 106, 159, 175, 209, 244, 262, 308, 321, 357, 361, 379, 488, 492, 493, 525, 544, 547),
    *(554, 596, 655, 672, 677, 716, 755, 864, 877, 943, 956),
)
_REPLACED = {"pairs": (653,), "kwise": (), "regression": _SINGLE, "process": _SINGLE}


def comparisons(split: str, size: int, format: str = "pairs") -> list[Comparison]:
    """Returns the first `size` comparisons of a split (`train` or `validation`); the same on every call.

    >>> comparisons("train", 1)[0].record
    {'prompt': 'Count up:', 'chosen': ' 603719', 'rejected': ' 607193'}
    """
    if format not in _GENERATORS:
        raise InputError(f"config.data.format is {format!r}; the built-in data comes as {', '.join(_GENERATORS)}")
    generate, parse = _GENERATORS[format]
    found, options = [], ReadOptions(step_separator="")
    for index in range(size):
        replaced = int(split == "validation" and index in _REPLACED[format])
        rng = np.random.Generator(np.random.Philox(key=[replaced, 2 * index + _STREAMS[split]]))
        direction = ("up", "down")[rng.integers(2)]
        prompt = _PROMPTS[direction][rng.integers(2)]
        record, ceiling = generate(rng, rng.permutation(10)[:DIGITS], direction)
        parsed = parse(f"synthetic-{split}:{index + 1}", {"prompt": prompt} | record, options)
        found.append(dataclasses.replace(parsed, ceiling=ceiling))
    return found


def gold(digits: np.ndarray, direction: str) -> int:
    """Returns (steps in the requested direction) - (steps against it); `digits` are all different."""
    steps = np.sign(np.diff(digits)).sum()
    return int(steps if direction == "up" else -steps)


def _text(digits: np.ndarray) -> str:
    return " " + "".join(map(str, digits))


def _probability(gold_first: int, gold_second: int) -> float:
    return 1 / (1 + math.exp(-BETA * (gold_first - gold_second)))


def _pair(rng: np.random.Generator, digits: np.ndarray, direction: str) -> tuple[Record, float]:
    first, second = rng.permutation(digits), rng.permutation(digits)
    while gold(first, direction) == gold(second, direction):
        second = rng.permutation(digits)
    p = _probability(gold(first, direction), gold(second, direction))
    chosen, rejected = (first, second) if rng.random() < p else (second, first)
    return {"chosen": _text(chosen), "rejected": _text(rejected)}, max(p, 1 - p)


def _kwise(rng: np.random.Generator, digits: np.ndarray, direction: str) -> tuple[Record, float]:
    responses: dict[str, int] = {}
    while len(responses) < RESPONSES:
        response = rng.permutation(digits)
        responses[_text(response)] = gold(response, direction)
    golds = np.array(list(responses.values()))
    ranks = 1 + np.argsort(np.argsort(-(BETA * golds + rng.gumbel(size=RESPONSES))))
    p = [_probability(a, b) for i, a in enumerate(golds) for b in golds[:i]]
    return {"responses": list(responses), "ranks": ranks.tolist()}, float(np.mean([max(q, 1 - q) for q in p]))


def _regression(rng: np.random.Generator, digits: np.ndarray, direction: str) -> tuple[Record, float]:
    noise = rng.normal(0, NOISE, 2)
    labels = {"order": gold(digits, direction) + noise[0], "start": float(digits[0]) + noise[1]}
    return {"response": _text(digits), "labels": labels}, NOISE**2


def _process(rng: np.random.Generator, digits: np.ndarray, direction: str) -> tuple[Record, float]:
    right = (np.diff(digits) > 0) == (direction == "up")
    labels = np.where(rng.random(DIGITS - 1) < FLIPPED, ~right, right).astype(int)
    return {"completions": [f" {digit}" for digit in digits], "labels": [-100, *labels.tolist()]}, 1 - FLIPPED


_GENERATORS = {
    "pairs": (_pair, preferences.parse_pair),
    "kwise": (_kwise, preferences.parse_kwise),
    "regression": (_regression, single.parse_regression),
    "process": (_process, process.parse_process),
}
