"""From comparisons to prefix trees: rendering, tokens, and where rewards are read. The one way for every program."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.schema import Comparison, Tree
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.data.tokens.trees import make_tree


@dataclasses.dataclass(frozen=True)
class _Text:
    """A conversation as text: whether its tokens are closed; in characters, where steps end and the response starts."""

    text: str
    add_eos: bool
    ends: tuple[int, ...] = ()
    start: int = 0


def make_trees(comparisons: Sequence[Comparison], tokenizer: Tokenizer, progress: str = "") -> list[Tree | str]:
    """Tokenises comparisons; in the place of one that gives no tree stands the reason.

    Args:
      progress: title of a progress bar; empty shows none.
    """
    rendered = [_render(comparison, tokenizer) for comparison in comparisons]
    flat = [text for texts in rendered if not isinstance(texts, str) for text in texts]
    encoded = iter(tokenizer.encode_texts([t.text for t in flat], [t.add_eos for t in flat], progress))
    found: list[Tree | str] = []
    for comparison, texts in zip(comparisons, rendered, strict=True):
        if isinstance(texts, str):
            found.append(texts)
            continue
        sequences = [next(encoded) for _ in texts]
        found.append(_tree(comparison, sequences, texts[0], tokenizer))
    return found


def _render(comparison: Comparison, tokenizer: Tokenizer, find_start: bool = False) -> list[_Text] | str:
    """Returns the texts of a comparison's conversations, or why there are none.

    Args:
      find_start: say where messages' last content starts; it is looked for only then, and for steps.
    """
    texts = []
    for conversation in comparison.conversations:
        if isinstance(conversation, str):
            texts.append(_Text(conversation, comparison.add_eos, comparison.steps, comparison.start))
            continue
        try:
            text = tokenizer.render(conversation)
        except InputError as error:
            return str(error)
        start = 0
        if comparison.steps or find_start:
            start = _find_last(str(conversation[-1].get("content") or ""), text, tokenizer)
        if comparison.steps and start < 0:
            return "the chat template alters the response, so its steps cannot be found; use data.strings = joined"
        texts.append(_Text(text, False, tuple(start + end for end in comparison.steps), max(start, 0)))
    return texts


def _find_last(content: str, text: str, tokenizer: Tokenizer) -> int:
    """Returns where the last message's content starts in the rendered text; -1 if the template alters it.

    The content holds no control token, so it lies behind the last one or, where a token closes the message, before it;
    it is not looked for within the token.
    """
    start, stop = tokenizer.last_control_token(text)
    behind = text.find(content, stop)
    return behind if behind >= 0 else text.rfind(content, 0, start)


def split_prompt(comparison: Comparison, tree: Tree, tokenizer: Tokenizer) -> Tree:
    """Returns the tree of a single response with its prompt as the prefix, where it is known where that ends."""
    rendered = _render(comparison, tokenizer, find_start=True)
    if isinstance(rendered, str) or len(tree.branches) > 1 or not rendered[0].start:
        return tree
    # The first token that starts within the response; one that spans both belongs to the response.
    cut = tokenizer.tokens_at(rendered[0].text, rendered[0].add_eos, [rendered[0].start])[0] + 1
    whole = np.concatenate([tree.prefix, tree.branches[0]])
    readouts = tuple((0, len(tree.prefix) + index - cut) for _, index in tree.readouts)
    return dataclasses.replace(tree, prefix=whole[:cut], branches=(whole[cut:],), readouts=readouts)


def _tree(comparison: Comparison, sequences: list[np.ndarray], first: _Text, tokenizer: Tokenizer) -> Tree | str:
    if not all(map(len, sequences)):
        return "a response gives no tokens"
    if any(np.array_equal(sequences[edge.winner], sequences[edge.loser]) for edge in comparison.edges):
        return "the better and the worse response give the same tokens"
    readouts = None
    if comparison.steps:
        readouts = tuple((0, index) for index in tokenizer.tokens_at(first.text, first.add_eos, first.ends))
    return make_tree(sequences, comparison.edges, comparison.labels, readouts)
