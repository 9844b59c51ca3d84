"""The data model: comparisons as text, as tokens, and as packed rows.

Axis letters: B rows, T tokens of a row, R readouts, E edges, K responses, A attributes.
"""

import dataclasses

import numpy as np

Message = dict[str, object]


@dataclasses.dataclass(frozen=True)
class Edge:
    """One preference: response `winner` is better than response `loser` (indices into the K responses).

    Attributes:
      margin: by how much the rewards should differ at least.
      weight: of this edge among all; a comparison's edges sum to its weight, so each comparison counts once.
      strength: a factor of this edge's loss that its weight does not know (scaled Bradley-Terry).
      target: the probability that the winner is the better one; 0.5 is a tie, which counts for no accuracy.
    """

    winner: int
    loser: int
    margin: float = 0.0
    weight: float = 1.0
    strength: float = 1.0
    target: float = 1.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A prompt with K >= 1 responses and what is known of them.

    Attributes:
      conversations: K whole conversations, the prompt included in each: lists of chat messages, or strings.
      add_eos: strings only: append the tokenizer's EOS unless the tokens end with it (NeMo-Aligner's `text` lines
        are tokenised as they are).
      edges: preferences between the readouts (responses, unless `steps` are given); empty for unlabelled data.
      labels: attribute values of each readout [R, A], NaN where missing; None where the data has no attributes.
      where: `path:line` of the record, for messages.
      record: the record(s) as read, for `score`'s output.
      ceiling: probability that the best possible judge agrees with the label; NaN where unknown.
      attributes: names of the A attributes.
      steps: process supervision (K = 1): where each step of the response ends, in characters of the conversation if it
        is a string, of the last message's content if it is messages; a reward is read at each.
      start: K = 1: where the response starts, in characters of the conversation if it is a string; 0: unknown. (Of
        messages the last one is the response.)
      subset: under which name metrics report it too; empty for none.
    """

    conversations: tuple[str | list[Message], ...]
    add_eos: bool
    edges: tuple[Edge, ...]
    labels: np.ndarray | None
    where: str
    record: dict[str, object]
    ceiling: float = float("nan")
    attributes: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    start: int = 0
    subset: str = ""


@dataclasses.dataclass(frozen=True)
class Tree:
    """A comparison as tokens: the longest common prefix once, then what remains of each response (never empty).

    Attributes:
      prefix: int32 [S], S may be 0.
      branches: K arrays int32 [length_k], length_k >= 1.
      readouts: (branch k, index within the branch) of each token at which a reward is read; by default the last
        token of each branch, so that readout k is response k's reward.
      edges, labels: as in `Comparison`, over the readouts.
    """

    prefix: np.ndarray
    branches: tuple[np.ndarray, ...]
    readouts: tuple[tuple[int, int], ...]
    edges: tuple[Edge, ...] = ()
    labels: np.ndarray | None = None

    @property
    def length(self) -> int:
        """Unique tokens: the prefix once and every branch."""
        return len(self.prefix) + sum(map(len, self.branches))

    @property
    def longest(self) -> int:
        """Tokens of the longest whole conversation (prefix + branch): what `max_length` bounds."""
        return len(self.prefix) + max(map(len, self.branches))


PER_TOKEN = ("tokens", "group", "branch", "position")  # the arrays of a packed batch that are [B, T]


def packed_spec(rows: int, row_length: int, readouts: int, edges: int, attributes: int) -> dict[str, tuple]:
    """Returns {name: (shape, dtype, fill value)} of a packed batch; the one declaration of its arrays.

    `group` numbers a row's comparisons from 1 and is 0 on padding; `branch` is 0 on a shared prefix, k + 1 on
    response k; `position` goes on from the prefix in every branch. Readouts and edges are row-local tables:
    `readout_index` points at tokens of the row, `edge_winner` and `edge_loser` at entries of the row's readout table.
    Unused readouts have `readout_group` 0, unused edges `edge_weight` 0, missing labels are NaN.
    """
    return {
        "tokens": ((rows, row_length), np.int32, 0),
        "group": ((rows, row_length), np.int32, 0),
        "branch": ((rows, row_length), np.int32, 0),
        "position": ((rows, row_length), np.int32, 0),
        "readout_index": ((rows, readouts), np.int32, 0),
        "readout_group": ((rows, readouts), np.int32, 0),
        "labels": ((rows, readouts, attributes), np.float32, np.nan),
        "edge_winner": ((rows, edges), np.int32, 0),
        "edge_loser": ((rows, edges), np.int32, 0),
        "edge_margin": ((rows, edges), np.float32, 0.0),
        "edge_weight": ((rows, edges), np.float32, 0.0),
        "edge_strength": ((rows, edges), np.float32, 0.0),
        "edge_target": ((rows, edges), np.float32, 0.0),
    }
