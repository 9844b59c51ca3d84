"""Examples of the report: a comparison's prompt and two of its responses, shortened."""

import numpy as np

from rmjax.core.sections import Example
from rmjax.core.text import shorten
from rmjax.data.curation.duplicates import response_texts
from rmjax.evaluation.scores import Scores


def edge_example(scores: Scores, index: int, ends: np.ndarray, title: str) -> Example:
    """Returns the example of a preference: record, prompt, and both responses with rewards and tokens.

    Args:
      ends: indices of winner and loser, int [2].
    """
    comparison, merged = scores.comparisons[index], scores.merged[index]
    winner, loser = map(int, ends)
    prompt, texts = response_texts(comparison)

    def heading(name: str, k: int) -> str:
        tokens = scores.tokens[index]
        length = f", {tokens[k]:,} tokens" if len(tokens) == len(merged) else ""
        return f"{name} (reward {merged[k]:.4f}{length})"

    text = lambda k: texts[k] if len(texts) == len(merged) else f"step {k + 1}"
    return Example(
        title,
        (
            ("record", comparison.where),
            ("prompt", shorten(prompt)),
            (heading("chosen", winner), shorten(text(winner))),
            (heading("rejected", loser), shorten(text(loser))),
        ),
    )
