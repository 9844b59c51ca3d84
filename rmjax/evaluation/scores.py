"""Comparisons with a model's rewards: what the measures of an evaluation are computed from.

Axis letters: n comparisons, K responses of a comparison, R its readouts, A attributes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from rmjax.data.curation.duplicates import split_prompt
from rmjax.data.schema import Comparison
from rmjax.data.tokens.dataset import align_labels

FEW_PROMPTS = 20  # below, intervals are over comparisons


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scored comparisons of an evaluation.

    Attributes:
      comparisons: [n].
      rewards: of each comparison, float32 [R, A].
      merged: of each comparison, the rewards [R] that rank its responses.
      tokens: of each comparison, the number of tokens of each response, int64 [K]: those of the conversation less those
        of the prompt's text alone. Tokens that a chat template adds are counted too.
      prompts: int64 [n], the cluster of each comparison (`clusters`): equal for those with the same prompt.
      attributes: names of the A attributes.
    """

    comparisons: list[Comparison]
    rewards: list[np.ndarray]
    merged: list[np.ndarray]
    tokens: list[np.ndarray]
    prompts: np.ndarray
    attributes: tuple[str, ...]

    def select(self, members: Sequence[int]) -> "Scores":
        """Returns the scores of the comparisons with these indices."""
        return Scores(
            [self.comparisons[i] for i in members],
            [self.rewards[i] for i in members],
            [self.merged[i] for i in members],
            [self.tokens[i] for i in members],
            self.prompts[np.asarray(members, np.int64)],
            self.attributes,
        )

    def with_attributes(self, names: Sequence[str]) -> "Scores":
        """Returns the scores with these attributes alone; `merged` stays."""
        columns = [self.attributes.index(name) for name in names]
        rewards = [each[:, columns] for each in self.rewards]
        return dataclasses.replace(self, rewards=rewards, attributes=tuple(names))

    def with_edges(self) -> "Scores":
        """Returns the scores of the comparisons that have edges."""
        return self.select([i for i, comparison in enumerate(self.comparisons) if comparison.edges])

    def with_labels(self, *, steps: bool) -> "Scores":
        """Returns the scores of the comparisons that have labels, of steps or of attributes."""
        has_labels = lambda one: one.labels is not None and bool(one.steps) == steps
        return self.select([i for i, comparison in enumerate(self.comparisons) if has_labels(comparison)])

    def labels(self, index: int) -> np.ndarray:
        """Returns the labels [R, A] of the head's attributes, NaN where the data lacks one."""
        comparison = self.comparisons[index]
        assert comparison.labels is not None
        # The single label of a step belongs to the head's first attribute, whatever its name.
        names = self.attributes[:1] if comparison.steps else comparison.attributes
        return align_labels(comparison.labels, names, self.attributes)


def prompt_text(comparison: Comparison) -> str:
    """Returns the text of the prompt, of several messages separated by empty lines; empty if it is not known."""
    return "\n\n".join(split_prompt(comparison)[0])


def prompt_ids(texts: Sequence[str]) -> np.ndarray:
    """Returns a number for each comparison, int64 [n], equal where the texts of the prompts are the same.

    A comparison without a prompt, or whose prompt is not known, has a number of its own.

    >>> prompt_ids(["a", "b", "a", "", ""]).tolist()
    [0, 1, 0, 3, 4]
    """
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(text, i) if text else i for i, text in enumerate(texts)], np.int64)


def clusters(texts: Sequence[str]) -> np.ndarray:
    """Returns the number of each comparison's cluster for bootstrap intervals, int64 [n]: that of its prompt's text.

    With fewer than 20 different prompts, each comparison is a cluster of its own: such prompts are a fixed set, such as
    templates of instructions, and intervals over so few clusters are too narrow (Cameron et al. 2008).
    """
    found = prompt_ids(texts)
    return found if len(np.unique(found)) >= FEW_PROMPTS else np.arange(len(texts))


def count_turns(comparison: Comparison) -> int:
    """Returns the number of turns: messages of the prompt that are the user's, at least 1; 1 for a plain string."""
    conversation = comparison.conversations[0]
    if isinstance(conversation, str):
        return max(1, len(split_prompt(comparison)[0]) // 2 + 1)  # of an HH-RLHF transcript: user, assistant, user, …
    return max(1, sum(message.get("role") == "user" for message in conversation))
