"""From comparisons to prefix trees: rendering, tokens, and where rewards are read. The one way for every program."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.packing import make_tree
from rmjax.data.schema import Comparison, Tree
from rmjax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class _Text:
    """A conversation as text: whether its tokens are closed, and where its steps end, in characters."""

    text: str
    closed: bool
    ends: tuple[int, ...] = ()


def make_trees(comparisons: Sequence[Comparison], tokenizer: Tokenizer, progress: str = "") -> list[Tree | str]:
    """Tokenises comparisons; in the place of one that gives no tree stands the reason.

    Args:
      progress: title of a progress bar; empty shows none.
    """
    rendered = [_render(comparison, tokenizer) for comparison in comparisons]
    flat = [text for texts in rendered if not isinstance(texts, str) for text in texts]
    encoded = iter(tokenizer.encode_texts([t.text for t in flat], [t.closed for t in flat], progress))
    found: list[Tree | str] = []
    for comparison, texts in zip(comparisons, rendered, strict=True):
        if isinstance(texts, str):
            found.append(texts)
            continue
        sequences = [next(encoded) for _ in texts]
        found.append(_tree(comparison, sequences, texts[0], tokenizer))
    return found


def _render(comparison: Comparison, tokenizer: Tokenizer) -> list[_Text] | str:
    """Returns the texts of a comparison's conversations, or why there are none."""
    texts = []
    for conversation in comparison.conversations:
        if isinstance(conversation, str):
            texts.append(_Text(conversation, comparison.close, comparison.steps))
            continue
        for message in conversation:
            if (token := tokenizer.control_token(str(message.get("content") or ""))) is not None:
                return (f"a message holds the text {token!r}, which the tokenizer would make a control token; "
                        "remove it, or write the conversation as a string to mean it")  # fmt: skip
        try:
            text = tokenizer.render(conversation)
        except InputError as error:
            return str(error)
        ends = comparison.steps
        if ends:
            content = str(conversation[-1]["content"])
            start = text.rfind(content)
            if start < 0:
                return "the chat template alters the response, so its steps cannot be found; use data.strings = joined"
            ends = tuple(start + end for end in ends)
        texts.append(_Text(text, False, ends))
    return texts


def _tree(comparison: Comparison, sequences: list[np.ndarray], first: _Text, tokenizer: Tokenizer) -> Tree | str:
    if not all(map(len, sequences)):
        return "a response gives no tokens"
    if any(np.array_equal(sequences[edge.winner], sequences[edge.loser]) for edge in comparison.edges):
        return "the better and the worse response give the same tokens"
    readouts = None
    if comparison.steps:
        readouts = tuple((0, index) for index in tokenizer.tokens_at(first.text, first.closed, first.ends))
    return make_tree(sequences, comparison.edges, comparison.labels, readouts)
