"""Comparisons to prefix trees: chat template, tokens, and readout positions; used by every program."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.core.readouts import is_mean
from rmjax.data.schema import Comparison, Message, Tree
from rmjax.data.tokens.templates import TemplateReport, find_left_out
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.data.tokens.trees import make_tree


@dataclasses.dataclass(frozen=True)
class _Text:
    """A conversation as text; `step_ends` and `response_start` (0: unknown) are character positions.

    `left_out` is what the chat template left out, None for a string.
    """

    text: str
    add_eos: bool
    step_ends: tuple[int, ...] = ()
    response_start: int = 0
    left_out: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Overlong:
    """A comparison with conversations that were not tokenized, since their characters are too many.

    Attributes:
      characters: of the longest conversation.
      left_out: number of those conversations.
      rest: the tree of the others, where each response may be left out by itself; None where it may not.
    """

    characters: int
    left_out: int
    rest: Tree | None


def make_trees(
    comparisons: Sequence[Comparison],
    tokenizer: Tokenizer,
    progress: str = "",
    report: TemplateReport | None = None,
    max_length: int = 0,
) -> list[Tree | Overlong | str]:
    """Returns the tree of each comparison, or an error message (str) if it cannot be tokenized.

    Args:
      progress: title of a progress bar; empty: none.
      report: counts what the chat template leaves out.
      max_length: conversations with more tokens than this by their characters alone are not tokenized, which gives an
        `Overlong`; 0: all are.
    """
    rendered = [_render(comparison, tokenizer) for comparison in comparisons]
    if report is not None:
        _count_left_out(comparisons, rendered, report)
    flat = [text for texts in rendered if not isinstance(texts, str) for text in texts]
    short = [not (max_length and tokenizer.character_limit.exceeds(text.text, max_length)) for text in flat]
    chosen = [text for text, is_short in zip(flat, short, strict=True) if is_short]
    tokens = iter(tokenizer.encode_texts([t.text for t in chosen], [t.add_eos for t in chosen], progress))
    encoded = iter([next(tokens) if is_short else None for is_short in short])
    return [
        texts if isinstance(texts, str) else _tree(comparison, texts, [next(encoded) for _ in texts], tokenizer)
        for comparison, texts in zip(comparisons, rendered, strict=True)
    ]


def _count_left_out(
    comparisons: Sequence[Comparison], rendered: Sequence[list[_Text] | str], report: TemplateReport
) -> None:
    for comparison, texts in zip(comparisons, rendered, strict=True):
        found = [] if isinstance(texts, str) else [text.left_out for text in texts if text.left_out is not None]
        if found:
            report.count_rendered(comparison.where, set().union(*found))


def _render(comparison: Comparison, tokenizer: Tokenizer, find_response: bool = False) -> list[_Text] | str:
    """Returns a comparison's texts, with the `response_start` of messages if `find_response`; or an error message."""
    texts = []
    for conversation in comparison.conversations:
        if isinstance(conversation, str):
            texts.append(_Text(conversation, comparison.add_eos, comparison.steps, comparison.start))
            continue
        try:
            text = tokenizer.render(conversation)
        except InputError as error:
            return str(error)
        start = _find_response(conversation, text, tokenizer) if comparison.steps or find_response else 0
        if comparison.steps and start < 0:
            return "the chat template alters the response, so its steps cannot be found; use data.strings = joined"
        step_ends = tuple(start + end for end in comparison.steps)
        texts.append(_Text(text, False, step_ends, max(start, 0), find_left_out(conversation, text)))
    return texts


def _find_response(messages: list[Message], text: str, tokenizer: Tokenizer) -> int:
    """Returns the start of the last message's content in the rendered text; -1 if the template alters it.

    The content has no special token, so it comes after the text's last special token or, where that ends the message,
    before it; the search leaves out the special token's own text.
    """
    content = str(messages[-1].get("content") or "")
    start, stop = tokenizer.last_special_token(text)
    after = text.find(content, stop)
    return after if after >= 0 else text.rfind(content, 0, start)


def separate_prompt(comparison: Comparison, tree: Tree, tokenizer: Tokenizer) -> Tree:
    """Returns the tree of a single response with its prompt moved to the prefix, if the response's start is known."""
    texts = _render(comparison, tokenizer, find_response=True)
    if isinstance(texts, str) or len(tree.branches) > 1 or not texts[0].response_start:
        return tree
    # A token that spans prompt and response belongs to the prompt.
    length = tokenizer.token_indices(texts[0].text, texts[0].add_eos, [texts[0].response_start])[0] + 1
    tokens = np.concatenate([tree.prefix, tree.branches[0]])
    readouts = tuple((0, len(tree.prefix) + index - length) for _, index in tree.readouts)
    return dataclasses.replace(tree, prefix=tokens[:length], branches=(tokens[length:],), readouts=readouts)


def _tree(
    comparison: Comparison, texts: list[_Text], found: list[np.ndarray | None], tokenizer: Tokenizer
) -> Tree | Overlong | str:
    """Returns the tree of a comparison's texts and their tokens; None for a text that is too long."""
    sequences = [tokens for tokens in found if tokens is not None]
    if not all(map(len, sequences)):
        return "a response has no tokens"
    same = lambda a, b: a is not None and b is not None and np.array_equal(a, b)
    if any(
        texts[edge.winner].text == texts[edge.loser].text or same(found[edge.winner], found[edge.loser])
        for edge in comparison.edges
    ):
        return "the better and the worse response have the same tokens"
    if len(sequences) < len(found):
        rest = None
        if sequences and not comparison.edges and not comparison.steps:
            kept = [k for k, tokens in enumerate(found) if tokens is not None]
            rest = make_tree(sequences, labels=None if comparison.labels is None else comparison.labels[kept])
            placed = place_readouts(comparison, rest, tokenizer)
            rest = placed if isinstance(placed, Tree) else None
        return Overlong(max(len(text.text) for text in texts), len(found) - len(sequences), rest)
    if not comparison.steps:
        return place_readouts(comparison, make_tree(sequences, comparison.edges, comparison.labels), tokenizer)
    if is_mean(tokenizer.readout):
        return (
            f"steps have no rewards where hidden states are averaged (data.readout = {tokenizer.readout}): set "
            "data.readout to last_token"
        )
    indices = tokenizer.token_indices(texts[0].text, texts[0].add_eos, texts[0].step_ends)
    return make_tree(sequences, comparison.edges, comparison.labels, tuple((0, index) for index in indices))


def place_readouts(comparison: Comparison, tree: Tree, tokenizer: Tokenizer) -> Tree | str:
    """Returns a tree with the readouts of its responses where the tokenizer has them; or an error message.

    The readouts of steps stay where they are.
    """
    if comparison.steps:
        return tree
    try:
        tree = tokenizer.readout_place.place(tree)
    except InputError as error:
        return str(error)
    shared = [index < 0 for _, index in tree.readouts]
    if any(shared[edge.winner] and shared[edge.loser] for edge in tree.edges):
        return f"the last {tokenizer.readout_place.text!r} is before the responses differ, so that rewards are equal"
    return tree
