"""Scoring of one batch of token sequences from several requests.

Axis letters: n sequences of the batch, A attributes.
"""

from collections.abc import Callable, Sequence

import numpy as np

from rmjax.data.schema import Tree
from rmjax.data.tokens.trees import make_tree
from rmjax.serving.engine.prefixes import PrefixSet

Score = Callable[[Sequence[Tree]], list[np.ndarray]]  # trees to rewards float32 [readouts, A] each


def score_batch(score: Score, prefixes: PrefixSet, max_tokens: int) -> tuple[np.ndarray, dict[int, Exception], int]:
    """Scores the sequences of a batch, merged into trees of at most `max_tokens` unique tokens by common prefixes.

    If scoring the batch raises, each sequence is scored alone, so that only the sequences that cause it get an error.

    Returns:
      Rewards float32 [n, A], undefined at sequences with an error; {index of a sequence: its error}; unique tokens.
    """
    sequences, unique = prefixes.sequences, 0
    try:
        groups = prefixes.groups(max_tokens)
        trees = [make_tree([sequences[i] for i in indices], prefix_length=shared) for indices, shared in groups]
        unique = sum(tree.length for tree in trees)
        scored = np.concatenate(score(trees))
        rewards = np.empty((len(sequences), scored.shape[1]), np.float32)
        rewards[[i for indices, _ in groups for i in indices]] = scored
        return rewards, {}, unique
    except Exception as error:  # the device may raise any type
        if len(sequences) == 1:
            return np.zeros((1, 1), np.float32), {0: error}, unique
    found: dict[int, np.ndarray] = {}
    errors: dict[int, Exception] = {}
    for i, sequence in enumerate(sequences):
        try:
            found[i] = score([make_tree([sequence])])[0][0]
        except Exception as error:
            errors[i] = error
    width = max(map(len, found.values()), default=1)
    rows = [found.get(i, np.zeros(width, np.float32)) for i in range(len(sequences))]
    return np.stack(rows), errors, unique
