"""Examples of the report: a comparison's prompt and two of its responses, shortened."""

import numpy as np

from rmjax.core.sections import Example
from rmjax.data.curation.duplicates import split_prompt
from rmjax.data.schema import Comparison
from rmjax.evaluation.scores import Scores

_CHARACTERS = 2000  # of a text in the report


def shorten(text: str) -> str:
    """Returns a text of at most 2,000 characters, with a note on what is left out of its middle."""
    if len(text) <= _CHARACTERS:
        return text
    half = _CHARACTERS // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def response_texts(comparison: Comparison) -> tuple[str, list[str]]:
    """Returns the text of the prompt, and one text for each response."""
    prompt, responses = split_prompt(comparison)
    if len(responses) != len(comparison.conversations):  # responses of several messages each
        last = [c if isinstance(c, str) else str(c[-1].get("content") or "") for c in comparison.conversations]
        return "\n\n".join(prompt), last
    return "\n\n".join(prompt), responses


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
