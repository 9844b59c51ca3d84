"""Built-in comparisons whose gold reward is known, so that the best reachable result is known too.

The prompt asks for digits in rising or falling order; the responses are different orders of the same digits. The gold
reward of a response is the number of its steps in the asked direction minus the number against it. No count of tokens
tells them apart: only their order does, and which order is good only the prompt says.

* pairs: labels are drawn from the Bradley-Terry model, P(a beats b) = sigmoid(BETA (gold_a - gold_b)), so the best
  judge, who knows the gold rewards, is right with probability max(p, 1 - p).
* kwise: four responses, ranked by BETA gold + Gumbel noise (Plackett-Luce); two of them compare as in pairs.
* regression: two attributes, `order` = gold and `start` = the first digit, each with normal noise of standard deviation
  NOISE, so no judge's mean squared error is below NOISE².
* process: each digit after the first is a step, right if it goes in the asked direction; one label in ten is flipped.
"""

import math
from typing import Any

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.records import parsers, process
from rmjax.data.records.parsers import ReadOptions
from rmjax.data.schema import Comparison

BETA = 1.2  # of the label noise; puts the ceiling of pairs near 0.93
DIGITS = 6  # of a response
RESPONSES = 4  # of a K-wise comparison
NOISE = 0.5  # standard deviation of the regression labels' noise
FLIPPED = 0.1  # share of the steps' labels that are wrong
_PROMPTS = {"up": ("Count up:", "Rising:"), "down": ("Count down:", "Falling:")}
_STREAMS = {"train": 0, "validation": 1}


def gold(digits: np.ndarray, direction: str) -> int:
    """Returns (steps in the asked direction) - (steps against it); `digits` are all different."""
    steps = np.sign(np.diff(digits)).sum()
    return int(steps if direction == "up" else -steps)


def comparison(seed: int, split: str, index: int, format: str = "pairs") -> Comparison:
    """Returns comparison `index` of a split; a pure function of its arguments."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 2 * index + _STREAMS[split]]))
    direction = ("up", "down")[rng.integers(2)]
    prompt = _PROMPTS[direction][rng.integers(2)]
    digits = rng.permutation(10)[:DIGITS]
    record, ceiling = _MAKERS[format](rng, digits, direction)
    where = f"synthetic-{split}:{index + 1}"
    found = _PARSERS[format](where, {"prompt": prompt} | record, ReadOptions(step_separator=""))
    return Comparison(**vars(found) | {"ceiling": ceiling})


def _text(digits: np.ndarray) -> str:
    return " " + "".join(map(str, digits))


def _agreement(first: int, second: int) -> float:
    return 1 / (1 + math.exp(-BETA * (first - second)))


def _pair(rng: np.random.Generator, digits: np.ndarray, direction: str) -> tuple[dict[str, Any], float]:
    first, second = rng.permutation(digits), rng.permutation(digits)
    while gold(first, direction) == gold(second, direction):
        second = rng.permutation(digits)
    p = _agreement(gold(first, direction), gold(second, direction))
    chosen, rejected = (first, second) if rng.random() < p else (second, first)
    return {"chosen": _text(chosen), "rejected": _text(rejected)}, max(p, 1 - p)


def _kwise(rng: np.random.Generator, digits: np.ndarray, direction: str) -> tuple[dict[str, Any], float]:
    texts: dict[str, int] = {}
    while len(texts) < RESPONSES:
        response = rng.permutation(digits)
        texts[_text(response)] = gold(response, direction)
    golds = np.array(list(texts.values()))
    ranks = 1 + np.argsort(np.argsort(-(BETA * golds + rng.gumbel(size=RESPONSES))))
    p = [_agreement(a, b) for i, a in enumerate(golds) for b in golds[:i]]
    return {"responses": list(texts), "ranks": ranks.tolist()}, float(np.mean([max(q, 1 - q) for q in p]))


def _regression(rng: np.random.Generator, digits: np.ndarray, direction: str) -> tuple[dict[str, Any], float]:
    noise = rng.normal(0, NOISE, 2)
    labels = {"order": gold(digits, direction) + noise[0], "start": float(digits[0]) + noise[1]}
    return {"response": _text(digits), "labels": labels}, NOISE**2


def _process(rng: np.random.Generator, digits: np.ndarray, direction: str) -> tuple[dict[str, Any], float]:
    right = (np.diff(digits) > 0) == (direction == "up")
    labels = np.where(rng.random(DIGITS - 1) < FLIPPED, ~right, right).astype(int)
    return {"completions": [f" {digit}" for digit in digits], "labels": [-100, *labels.tolist()]}, 1 - FLIPPED


_MAKERS = {"pairs": _pair, "kwise": _kwise, "regression": _regression, "process": _process}
_PARSERS = {
    "pairs": parsers.pairs,
    "kwise": parsers.kwise,
    "regression": parsers.regression,
    "process": process.process,
}


def comparisons(split: str, size: int, format: str = "auto", seed: int = 0) -> list[Comparison]:
    """Returns the first `size` comparisons of a split (`train` or `validation`); `auto` gives pairs."""
    format = "pairs" if format == "auto" else format
    if format not in _MAKERS:
        raise InputError(f"config.data.format is {format!r}; the built-in data comes as {', '.join(_MAKERS)}")
    return [comparison(seed, split, index, format) for index in range(size)]
