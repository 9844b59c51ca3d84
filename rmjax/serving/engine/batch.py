"""Scoring a batch, so that nobody pays for what is wrong with another.

Axis letters: n sequences of a batch, A attributes.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from rmjax.data.schema import Tree
from rmjax.data.tokens.trees import make_tree
from rmjax.serving.engine.prefixes import PrefixSet

Score = Callable[[Sequence[Tree]], list[np.ndarray]]  # trees to rewards [readouts, A] each


def score_batch(score: Score, prefixes: PrefixSet, longest: int) -> tuple[np.ndarray, dict[int, Exception], int]:
    """Scores the sequences of a batch, those that begin alike as one tree.

    Args:
      longest: unique tokens of the largest tree.

    Returns:
      Rewards float32 [n, A], what some of the sequences ended in instead, unique tokens.
    """
    sequences, unique = prefixes.sequences, 0
    try:
        groups = prefixes.groups(longest)
        trees = [make_tree([sequences[i] for i in indices], shared=shared) for indices, shared in groups]
        unique = sum(tree.length for tree in trees)
        scored = score(trees)
        # A value that is not finite reaches all branches of its tree, since 0 * NaN is NaN: alone, each sequence
        # answers for itself.
        ill = [g for g, rewards in enumerate(scored) if len(rewards) > 1 and not np.isfinite(rewards).all()]
        for g in ill:
            scored[g] = np.concatenate(score([make_tree([sequences[i]]) for i in groups[g][0]]))
        flat = np.concatenate(scored)
        rewards = np.empty((len(sequences), flat.shape[1]), np.float32)
        rewards[[i for indices, _ in groups for i in indices]] = flat
    except Exception as error:  # whatever the device raises: it fails nobody but the sequence that causes it
        if len(sequences) == 1:
            return np.zeros((1, 1), np.float32), {0: error}, unique
        return (*_score_alone(score, sequences, longest), unique)
    return rewards, {}, unique


def _score_alone(
    score: Score, sequences: Sequence[np.ndarray], longest: int
) -> tuple[np.ndarray, dict[int, Exception]]:
    """Scores one after the other."""
    found, errors = [], {}
    for i, sequence in enumerate(sequences):
        alone = PrefixSet()
        alone.add(sequence, math.inf)
        rewards, failed, _ = score_batch(score, alone, longest)
        found.append(rewards)
        if failed:
            errors[i] = failed[0]
    width = max(rewards.shape[1] for rewards in found)
    return np.concatenate([np.broadcast_to(rewards, (1, width)) for rewards in found]), errors
