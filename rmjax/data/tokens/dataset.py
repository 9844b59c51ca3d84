"""Tokenised comparisons as flat arrays."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from rmjax.data.schema import Edge, Tree


def align_labels(labels: np.ndarray, attributes: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Returns labels [R, A] of `attributes` as those of `wanted`, NaN where there is no such attribute.

    Attributes without names of their own (label_0, label_1, …) take those that are wanted, if they are as many.
    """
    unnamed = tuple(f"label_{i}" for i in range(len(wanted)))
    if tuple(attributes) == unnamed and not set(wanted) & set(unnamed):
        return labels
    aligned = np.full((len(labels), len(wanted)), np.nan, np.float32)
    for a, name in enumerate(wanted):
        if name in attributes:
            aligned[:, a] = labels[:, attributes.index(name)]
    return aligned


@dataclasses.dataclass(frozen=True)
class TokenizedDataset:
    """Comparisons as flat arrays; comparison i owns the slices between `*_offsets[i]` and `*_offsets[i + 1]`.

    Attributes:
      tokens: int32, prefix and branches of every comparison, one after the other.
      segments: int32, lengths: of the prefix, then of each branch.
      readouts: int32 [R, 2], (branch, index within it).
      edges: float32 [E, 6], (winner, loser, margin, weight, strength, target).
      labels: float32 [R, A], NaN where missing; A is 0 without attributes.
      attributes: names of the A attributes.
      subset: of each comparison, under which metrics report it too; empty for none.
      ceiling: float32 [n], probability that the best judge agrees with the label; NaN where unknown.
      where: `path:line` of each comparison.
    """

    tokens: np.ndarray
    token_offsets: np.ndarray
    segments: np.ndarray
    segment_offsets: np.ndarray
    readouts: np.ndarray
    readout_offsets: np.ndarray
    edges: np.ndarray
    edge_offsets: np.ndarray
    labels: np.ndarray
    ceiling: np.ndarray
    where: list[str]
    attributes: tuple[str, ...]
    subset: list[str]

    @classmethod
    def build(
        cls,
        trees: Sequence[Tree],
        ceiling: Sequence[float],
        where: Sequence[str],
        attributes: tuple[str, ...] = (),
        subset: Sequence[str] = (),
    ) -> "TokenizedDataset":
        """Flattens trees; a tree without labels gets missing ones."""
        count = len(attributes)
        missing = lambda tree: np.full((len(tree.readouts), count), np.nan, np.float32)
        labels = [missing(tree) if tree.labels is None else tree.labels for tree in trees]
        offsets = lambda counts: np.concatenate([[0], np.cumsum(np.asarray(list(counts), np.int64))])
        edges = [dataclasses.astuple(edge) for tree in trees for edge in tree.edges]
        parts = [part for tree in trees for part in (tree.prefix, *tree.branches)]
        return cls(
            np.concatenate([np.zeros(0, np.int32), *parts]),
            offsets(tree.length for tree in trees),
            np.array([len(part) for part in parts], np.int32),
            offsets(1 + len(tree.branches) for tree in trees),
            np.array([readout for tree in trees for readout in tree.readouts], np.int32).reshape(-1, 2),
            offsets(len(tree.readouts) for tree in trees),
            np.array(edges, np.float32).reshape(-1, 6),
            offsets(len(tree.edges) for tree in trees),
            np.concatenate([np.zeros((0, count), np.float32), *labels]),
            np.asarray(ceiling, np.float32),
            list(where),
            tuple(attributes),
            list(subset) or [""] * len(trees),
        )

    def __len__(self) -> int:
        return len(self.token_offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Unique tokens of each comparison, int64 [n]."""
        return np.diff(self.token_offsets)

    @property
    def readout_counts(self) -> np.ndarray:
        """Readouts of each comparison, int64 [n]."""
        return np.diff(self.readout_offsets)

    @property
    def edge_counts(self) -> np.ndarray:
        """Edges of each comparison, int64 [n]."""
        return np.diff(self.edge_offsets)

    def tree(self, i: int) -> Tree:
        """Returns comparison i."""
        cut = lambda array, offsets: array[offsets[i] : offsets[i + 1]]
        parts = self._parts(i)
        readouts = tuple((int(k), int(j)) for k, j in cut(self.readouts, self.readout_offsets))
        edges = tuple(Edge(int(w), int(r), *rest) for w, r, *rest in cut(self.edges, self.edge_offsets).tolist())
        labels = cut(self.labels, self.readout_offsets) if self.attributes else None
        return Tree(parts[0], tuple(parts[1:]), readouts, edges, labels)

    def _parts(self, i: int) -> list[np.ndarray]:
        """Returns the prefix and the branches of comparison i, int32 [length] each."""
        lengths = self.segments[self.segment_offsets[i] : self.segment_offsets[i + 1]]
        return np.split(self.tokens[self.token_offsets[i] : self.token_offsets[i + 1]], np.cumsum(lengths)[:-1])

    def fingerprint(self) -> str:
        """Returns a hash of all that training reads of the comparisons."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.segments, self.readouts, self.edges, self.labels):
            digest.update(array.tobytes() + b"|")
        return digest.hexdigest()

    def shared(self, other: "TokenizedDataset") -> list[int]:
        """Returns which of our comparisons have the very tokens of one of the other's."""
        own, theirs = ([dataset._tokens(i) for i in range(len(dataset))] for dataset in (self, other))
        theirs = set(theirs)
        return [i for i, tokens in enumerate(own) if tokens in theirs]

    def _tokens(self, i: int) -> tuple[bytes, ...]:
        """Returns the prompt and the responses of a comparison, in whatever order they are there."""
        prefix, *branches = (part.tobytes() for part in self._parts(i))
        return (prefix, *sorted(branches))

    def with_attributes(self, attributes: tuple[str, ...]) -> "TokenizedDataset":
        """Returns the dataset with these attributes in this order; one that it does not have is missing everywhere."""
        labels = align_labels(self.labels, self.attributes, attributes)
        return dataclasses.replace(self, labels=labels, attributes=tuple(attributes))


def concatenate(datasets: Sequence[TokenizedDataset]) -> TokenizedDataset:
    """Returns one dataset of several; its attributes are all of theirs, missing where a dataset has no such one."""
    attributes = tuple(dict.fromkeys(name for dataset in datasets for name in dataset.attributes))
    joined = {}
    for name in ("token", "segment", "readout", "edge"):
        counts = [np.diff(getattr(dataset, f"{name}_offsets")) for dataset in datasets]
        joined[f"{name}_offsets"] = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    for name in ("tokens", "segments", "readouts", "edges", "ceiling"):
        joined[name] = np.concatenate([getattr(dataset, name) for dataset in datasets])
    labels = [dataset.with_attributes(attributes).labels for dataset in datasets]
    return TokenizedDataset(
        **joined,
        labels=np.concatenate(labels),
        where=[where for dataset in datasets for where in dataset.where],
        attributes=attributes,
        subset=[subset for dataset in datasets for subset in dataset.subset],
    )
