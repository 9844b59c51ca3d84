"""Built-in comparisons whose gold reward is known, so that the best reachable accuracy is known too.

The prompt asks for digits in rising or falling order; the two responses are different orders of the same digits. The
gold reward of a response is the number of its steps in the asked direction minus the number against it. No count of
tokens tells the two apart: only their order does, and which order is good only the prompt says.

Labels are drawn from the Bradley-Terry model, P(a beats b) = sigmoid(BETA (gold_a - gold_b)), so the best judge, who
knows the gold rewards, is right with probability max(p, 1 - p).
"""

import math

import numpy as np

from rmjax.data.schema import Comparison, Edge

BETA = 1.2  # of the label noise; puts the ceiling near 0.93
DIGITS = 6  # of a response
_PROMPTS = {"up": ("Count up:", "Rising:"), "down": ("Count down:", "Falling:")}


def gold(digits: np.ndarray, direction: str) -> int:
    """Returns (steps in the asked direction) - (steps against it); `digits` are all different."""
    steps = np.sign(np.diff(digits)).sum()
    return int(steps if direction == "up" else -steps)


def comparison(seed: int, split: str, index: int) -> Comparison:
    """Returns comparison `index` of a split; a pure function of its arguments."""
    stream = {"train": 0, "validation": 1}[split]
    rng = np.random.Generator(np.random.Philox(key=[seed, 2 * index + stream]))
    direction = ("up", "down")[rng.integers(2)]
    prompt = _PROMPTS[direction][rng.integers(2)]
    digits = rng.permutation(10)[:DIGITS]
    first, second = rng.permutation(digits), rng.permutation(digits)
    while gold(first, direction) == gold(second, direction):
        second = rng.permutation(digits)
    p = 1 / (1 + math.exp(-BETA * (gold(first, direction) - gold(second, direction))))
    chosen, rejected = (first, second) if rng.random() < p else (second, first)
    texts = [" " + "".join(map(str, response)) for response in (chosen, rejected)]
    record = {"prompt": prompt, "chosen": texts[0], "rejected": texts[1]}
    conversations = (prompt + texts[0], prompt + texts[1])
    where = f"synthetic-{split}:{index + 1}"
    return Comparison(conversations, True, (Edge(0, 1),), None, where, record, ceiling=max(p, 1 - p))


def comparisons(split: str, size: int, seed: int = 0) -> list[Comparison]:
    """Returns the first `size` comparisons of a split (`train` or `validation`)."""
    return [comparison(seed, split, index) for index in range(size)]
