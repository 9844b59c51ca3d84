"""Data types: comparisons as text, as tokens, and as packed rows.

Axis letters: B rows, T tokens of a row, R readouts, E edges, K responses, A attributes.
"""

import dataclasses
from typing import Any

import numpy as np

Message = dict[str, Any]  # role, content, and tool calls; see also `records.tools`
Conversation = str | list[Message]
Record = dict[str, Any]  # one object of a data file


@dataclasses.dataclass(frozen=True)
class Edge:
    """One preference: readout `winner` is better than readout `loser` (indices; by default a readout per response).

    Attributes:
      margin: minimum difference of the rewards.
      weight: weight of the loss; the weights of a comparison's edges sum to the comparison's weight, 1 by default.
      strength: a factor of the loss that is not part of the weight (scaled Bradley-Terry).
      target: probability that the winner is the better one; 0.5 is a tie, which is left out of accuracies.
    """

    winner: int
    loser: int
    margin: float = 0.0
    weight: float = 1.0
    strength: float = 1.0
    target: float = 1.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A prompt with K >= 1 responses and their labels.

    Attributes:
      conversations: K whole conversations, each with the prompt: lists of chat messages, or strings.
      add_eos: for strings: append the EOS token unless the tokens end with it (False for NeMo-Aligner's `text` lines).
      edges: preferences between the readouts (one per response, or one per step); empty for unlabeled data.
      labels: attribute values of each readout [R, A], NaN where missing; None for data without attributes.
      where: `path:line` of the record, for error messages.
      record: the record(s) as read, for the output of `rmjax.score`.
      ceiling: best reachable result: the accuracy, or the squared error of attributes; NaN where unknown.
      attributes: names of the A attributes.
      steps: for process supervision (K = 1): the end of each step, which is a readout, in characters of the
        conversation if it is a string, else of the last message's content.
      start: for K = 1: the start of the response in characters of the conversation if it is a string; 0: unknown. In a
        list of messages, the last one is the response.
      subset: name under which metrics are reported too; empty: none.
    """

    conversations: tuple[Conversation, ...]
    add_eos: bool
    edges: tuple[Edge, ...]
    labels: np.ndarray | None
    where: str
    record: Record
    ceiling: float = float("nan")
    attributes: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    start: int = 0
    subset: str = ""


@dataclasses.dataclass(frozen=True)
class Tree:
    """A prefix tree, the tokens of a comparison: the longest common prefix once, then the rest of each response.

    Attributes:
      prefix: int32 [S], S >= 0.
      branches: K arrays int32 [length_k], length_k >= 1.
      readouts: [R], (branch k, index in the branch) of each token at which a reward is read; by default the last token
        of each branch, so that readout k is the reward of response k. A negative index is in the prefix, -1 its end.
      edges, labels: as in `Comparison`, over the readouts.
      spans: [R], numbers of tokens whose hidden states are averaged: those of the conversation that end with the
        readout; empty: 1 each.
    """

    prefix: np.ndarray
    branches: tuple[np.ndarray, ...]
    readouts: tuple[tuple[int, int], ...]
    edges: tuple[Edge, ...] = ()
    labels: np.ndarray | None = None
    spans: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Number of unique tokens: those of the prefix, once, and of all branches."""
        return len(self.prefix) + sum(map(len, self.branches))

    @property
    def longest(self) -> int:
        """Number of tokens of the longest conversation (prefix and branch), which `max_length` bounds."""
        return len(self.prefix) + max(map(len, self.branches))

    def read(self) -> list[np.ndarray]:
        """Returns whether a reward is read at each token: bool [S] of the prefix, then one array for each branch."""
        found = [np.zeros(len(part), bool) for part in (self.prefix, *self.branches)]
        for (k, index), span in zip(self.readouts, self.spans or [1] * len(self.readouts), strict=True):
            end = len(self.prefix) + index + 1
            path = np.arange(end - span, end)
            found[0][path[path < len(self.prefix)]] = True
            found[k + 1][path[path >= len(self.prefix)] - len(self.prefix)] = True
        return found


PER_TOKEN = ("tokens", "group", "branch", "position")  # the arrays [B, T] of a packed batch


def packed_spec(
    rows: int, row_length: int, readouts: int, edges: int, attributes: int, *, comparisons: bool = False
) -> dict[str, tuple]:
    """Returns {name: (shape, dtype, fill value)} of the arrays of a packed batch of B rows.

    `group` is the number of a comparison in its row, from 1; 0 on padding. `branch` is 0 on a prefix, k + 1 on response
    k; `position` continues from the prefix in every branch. The readout and edge tables are per row: `readout_index`
    [B, R] refers to tokens of the row, `edge_winner` and `edge_loser` [B, E] to entries of the row's readout table;
    `readout_span` is as `Tree.spans`. Unused readouts have `readout_group` 0, unused edges `edge_weight` 0; missing
    labels are NaN. With `comparisons`, `readout_comparison` [B, R] is the index of a readout's comparison in
    the dataset.
    """
    named = {"readout_comparison": ((rows, readouts), np.int32, 0)} if comparisons else {}
    return named | {
        "tokens": ((rows, row_length), np.int32, 0),
        "group": ((rows, row_length), np.int32, 0),
        "branch": ((rows, row_length), np.int32, 0),
        "position": ((rows, row_length), np.int32, 0),
        "readout_index": ((rows, readouts), np.int32, 0),
        "readout_group": ((rows, readouts), np.int32, 0),
        "readout_span": ((rows, readouts), np.int32, 1),
        "labels": ((rows, readouts, attributes), np.float32, np.nan),
        "edge_winner": ((rows, edges), np.int32, 0),
        "edge_loser": ((rows, edges), np.int32, 0),
        "edge_margin": ((rows, edges), np.float32, 0.0),
        "edge_weight": ((rows, edges), np.float32, 0.0),
        "edge_strength": ((rows, edges), np.float32, 0.0),
        "edge_target": ((rows, edges), np.float32, 0.0),
    }
