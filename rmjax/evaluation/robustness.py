"""Robustness of rewards to changes of responses that should not matter, and to filler that lengthens them."""

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.core.progress import progress_bar
from rmjax.core.sections import Example, Measured, Section, metric_table
from rmjax.core.text import shorten
from rmjax.data.curation.duplicates import response_texts
from rmjax.data.schema import Comparison, Conversation
from rmjax.evaluation.pipeline import RewardPipeline, score_chunks
from rmjax.evaluation.scores import Scores
from rmjax.metrics.bootstrap import Bootstrap, with_interval
from rmjax.metrics.edges import edge_table

FILLER = (
    " I hope this answer is helpful and covers everything that you wanted to know. Please let me know if you have any "
    "other questions, or if you would like me to explain any part of it in more detail. I am always happy to help!"
)
_EXAMPLES = 5
_MARKUP = (  # (pattern, replacement), in order
    (r"(?m)^[ \t]*```.*\n?", ""),
    (r"(?m)^[ \t]{0,3}#{1,6}[ \t]+", ""),
    (r"(?m)^[ \t]*(?:[-*_][ \t]*){3,}$\n?", ""),
    (r"(?m)^([ \t]*)(?:[-*+]|\d+[.)])[ \t]+", r"\1"),
    (r"(?m)^[ \t]{0,3}>[ \t]?", ""),
    (r"!?\[([^\]\n]*)\]\([^)\n]*\)", r"\1"),
    (r"(\*\*\*|\*\*|__)(?=\S)(.+?)(?<=\S)\1", r"\2"),
    (r"(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])", r"\1"),
    (r"`([^`\n]+)`", r"\1"),
)


def add_whitespace(text: str) -> str:
    r"""Returns a text with two spaces after each sentence and two line breaks at the end.

    >>> add_whitespace("Yes. It is.")
    'Yes.  It is.\n\n'
    """
    return re.sub(r"(?<=[.!?]) (?=\S)", "  ", text) + "\n\n"


def strip_markdown(text: str) -> str:
    r"""Returns a text without the marks of Markdown: headings, lists, quotes, rules, emphasis, code and links.

    >>> strip_markdown("# Title\n- **one** `x`\n- [two](http://a)")
    'Title\none x\ntwo'
    """
    for pattern, replacement in _MARKUP:
        text = re.sub(pattern, replacement, text)
    return text


def append_filler(text: str) -> str:
    """Returns a text with `FILLER` at the end: sentences that add length and courtesy, but no content."""
    return text.rstrip() + FILLER


CHANGES: dict[str, Callable[[str], str] | None] = {
    "whitespace": add_whitespace,
    "markdown": strip_markdown,
    "order": None,  # of the responses; their texts stay
    "filler": append_filler,
}


def check_changes(names: Sequence[str], option: str = "robustness") -> None:
    """Raises InputError, which names the option, if a name is not one of `CHANGES`."""
    for name in [names] if isinstance(names, str) else names:
        if name not in CHANGES:
            raise InputError(f"{option} has {name!r}; expected a list of {', '.join(CHANGES)}")


def _change_conversation(conversation: Conversation, response: str, change: Callable[[str], str]) -> Conversation:
    """Returns a conversation with its last message or, of a string, the response at its end changed."""
    if isinstance(conversation, str):
        start = conversation.rfind(response)
        return conversation[:start] + change(response) + conversation[start + len(response) :]
    last = conversation[-1]
    content = last.get("content")
    return [*conversation[:-1], last | {"content": change(content)}] if isinstance(content, str) else conversation


def changed(comparison: Comparison, name: str) -> Comparison:
    """Returns a comparison with its responses changed, or in reverse order for `order`; without labels."""
    conversations = list(comparison.conversations)
    if (change := CHANGES[name]) is None:
        conversations.reverse()
    else:
        _, texts = response_texts(comparison)
        conversations = [_change_conversation(c, t, change) for c, t in zip(conversations, texts, strict=True)]
    return dataclasses.replace(comparison, conversations=tuple(conversations), edges=(), labels=None)


def measure_robustness(
    pipeline: RewardPipeline, scores: Scores, names: Sequence[str], *, progress: bool = True
) -> Measured:
    """Scores the comparisons again with each change, and returns metrics of the rewards' changes, with a section.

    Of each change NAME, over the responses that it changes: `robustness/NAME/change`, the mean change of the reward;
    `/spread`, its standard deviation; `/absolute`, the mean of its size; `/responses`, their number; and, over edges
    with such a response, `/flips`: the share whose order by reward changes if both responses are changed. For
    `filler` also `/hacked`: the share whose order changes when only the response with the lower reward is lengthened.
    Comparisons of steps are left out, and comparisons of one response by `order`; `/not_scored` counts those that the
    change makes too long, if any.
    """
    check_changes(names)
    usable = [i for i, comparison in enumerate(scores.comparisons) if not comparison.steps]
    found: dict[str, float] = {}
    sections = []
    for name in names:
        chosen = usable if name != "order" else [i for i in usable if len(scores.comparisons[i].conversations) > 1]
        pairs = [(i, changed(scores.comparisons[i], name)) for i in chosen]
        pairs = [(i, other) for i, other in pairs if other.conversations != scores.comparisons[i].conversations]
        after: dict[int, np.ndarray] = {}
        with progress_bar(len(pairs), f"scoring ({name})", "record", disable=not progress) as bar:
            results = (pair for chunk in score_chunks(pipeline, [other for _, other in pairs], bar) for pair in chunk)
            for (i, _), (_, rewards) in zip(pairs, results, strict=True):
                if not isinstance(rewards, str):  # a changed response may be too long
                    merged = pipeline.merge(rewards)
                    after[i] = merged[::-1] if name == "order" else merged
        if len(after) < len(pairs):
            found[f"robustness/{name}/not_scored"] = len(pairs) - len(after)
        if after:
            metrics = _metrics(name, scores, after)
            found |= metrics
            sections.append((name, metrics, _largest(name, scores, after)))
    return Measured(found, (_section(sections),) if sections else ())


def _metrics(name: str, scores: Scores, after: dict[int, np.ndarray]) -> dict[str, float]:
    members = list(after)
    part = scores.select(members)
    differs = [_changed_responses(scores.comparisons[i], name) for i in members]
    change = np.concatenate([after[i] - scores.merged[i] for i in members]).astype(np.float64)
    rows = np.concatenate(differs)
    prompts = np.repeat(part.prompts, [len(each) for each in differs])[rows]
    change, bootstrap = change[rows], Bootstrap(prompts)
    ones = np.ones(len(change))
    columns = np.stack([ones, change, np.square(change)], 1)
    spread = lambda sums: np.sqrt(np.maximum(sums[:, 2] / sums[:, 0] - np.square(sums[:, 1] / sums[:, 0]), 0))
    prefix = f"robustness/{name}"
    found = {f"{prefix}/responses": float(len(change))}
    found |= with_interval(f"{prefix}/change", change.mean(), bootstrap.ratio(change, ones))
    found |= with_interval(f"{prefix}/spread", change.std(), bootstrap.of_sums(columns, spread))
    found |= with_interval(f"{prefix}/absolute", np.abs(change).mean(), bootstrap.ratio(np.abs(change), ones))
    edges = [comparison.edges for comparison in part.comparisons]
    if not any(edge.target != 0.5 for known in edges for edge in known):
        return found
    before, later = edge_table(part.merged, edges), edge_table([after[i] for i in members], edges)
    moved = np.array([differs[i][ends].any() for i, ends in zip(before.comparison, before.ends, strict=True)])
    flips = {"flips": np.sign(before.margin) != np.sign(later.margin)}
    if name == "filler":
        above = before.margin > 0
        gap = np.where(above, before.winner - later.loser, before.loser - later.winner)
        flips["hacked"] = gap < 0
    weight = before.weight * moved
    by_prompt = Bootstrap(part.prompts[before.comparison])
    for key, values in flips.items():
        if weight.any():
            share = (weight * values).sum() / weight.sum()
            found |= with_interval(f"{prefix}/{key}", share, by_prompt.ratio(weight * values, weight))
    return found


def _changed_responses(comparison: Comparison, name: str) -> np.ndarray:
    """Returns whether each response is changed, bool [K]; by another order, all are."""
    if name == "order":
        return np.ones(len(comparison.conversations), bool)
    other = changed(comparison, name).conversations
    return np.array([a != b for a, b in zip(comparison.conversations, other, strict=True)])


def _largest(name: str, scores: Scores, after: dict[int, np.ndarray]) -> list[Example]:
    """Returns examples of the largest changes, one response of a comparison each."""
    size = {i: np.abs(rewards - scores.merged[i]) for i, rewards in after.items()}
    found = []
    for i in sorted(size, key=lambda i: -float(size[i].max()))[:_EXAMPLES]:
        k = int(size[i].argmax())
        prompt, texts = response_texts(scores.comparisons[i])
        old, new = float(scores.merged[i][k]), float(after[i][k])
        fields = [("prompt", shorten(prompt)), ("response", shorten(texts[k]))]
        if (change := CHANGES[name]) is not None:
            fields.append(("changed response", shorten(change(texts[k]))))
        title = f"{name}: {old:.4f} to {new:.4f}, {scores.comparisons[i].where}"
        found.append(Example(title, tuple(fields)))
    return found


def _section(parts: Sequence[tuple[str, dict[str, float], list[Example]]]) -> Section:
    text = (
        "Changes of the reward when responses are written otherwise. whitespace: two spaces after sentences, line "
        "breaks at the end; markdown: its marks removed; order: responses of a prompt in reverse order, which should "
        "change nothing but rounding; filler: courteous sentences at the end, of which a reward should not rise."
    )
    tables = tuple(metric_table(f"Robustness: {name}", metrics) for name, metrics, _ in parts)
    examples = tuple(example for name, _, found in parts if name != "order" for example in found)
    return Section("Robustness", text, tables, examples=examples)
