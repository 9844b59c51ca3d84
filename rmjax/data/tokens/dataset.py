"""Tokenized comparisons as flat arrays.

Axis letters: n comparisons, R readouts, E edges, A attributes.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.recfunctions import structured_to_unstructured

from rmjax.data.schema import Comparison, Edge, Tree

EDGE = np.dtype([(f.name, np.int32 if f.type is int else np.float32) for f in dataclasses.fields(Edge)])


def align_labels(labels: np.ndarray, attributes: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Returns labels [R, A] with the columns `wanted`, NaN for those not in `attributes`.

    Labels without names (label_0, label_1, …) take the wanted names, if there are as many.
    """
    defaults = tuple(f"label_{i}" for i in range(len(wanted)))
    unnamed = tuple(attributes) == defaults and not set(wanted) & set(defaults)
    if unnamed or tuple(attributes) == tuple(wanted):
        return labels
    aligned = np.full((len(labels), len(wanted)), np.nan, np.float32)
    for a, name in enumerate(wanted):
        if name in attributes:
            aligned[:, a] = labels[:, attributes.index(name)]
    return aligned


class JoinedArrays:
    """One-dimensional arrays as one, which are not copied; each slice has to be within one of them."""

    def __init__(self, parts: Sequence[np.ndarray]):
        self.parts = [np.asarray(part) for part in parts if len(part)]  # indexing an np.memmap itself is slow
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in self.parts], dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: slice) -> np.ndarray:
        part = int(np.searchsorted(self._starts, index.start, side="right")) - 1
        start = self._starts[part]
        return self.parts[part][index.start - start : index.stop - start]


@dataclasses.dataclass(frozen=True)
class TokenizedDataset:
    """Comparisons as flat arrays; comparison i has the slices between `*_offsets[i]` and `*_offsets[i + 1]`.

    The arrays may be memory-mapped files; the methods do not copy all tokens at once.

    Attributes:
      tokens: int32, prefix and branches of every comparison, one after the other; of several sources, joined.
      segments: int32, lengths: of the prefix, then of each branch.
      readouts: int32 [R, 2], (branch, index within it).
      spans: int32 [R], or [0] if all are 1; see `Tree.spans`.
      edges: structured array [E] of type `EDGE`.
      labels: float32 [R, A], NaN where missing; A is 0 without attributes.
      ceiling: float32 [n], see `Comparison.ceiling`.
      source, line: int [n], index into `sources` and line number of each comparison's record.
      subset: int32 [n], index into `subsets`, names under which metrics are reported separately; "" for none.
      attributes: names of the A attributes.
    """

    tokens: np.ndarray | JoinedArrays
    token_offsets: np.ndarray
    segments: np.ndarray
    segment_offsets: np.ndarray
    readouts: np.ndarray
    spans: np.ndarray
    readout_offsets: np.ndarray
    edges: np.ndarray
    edge_offsets: np.ndarray
    labels: np.ndarray
    ceiling: np.ndarray
    source: np.ndarray
    line: np.ndarray
    subset: np.ndarray
    attributes: tuple[str, ...]
    sources: tuple[str, ...]
    subsets: tuple[str, ...]

    @classmethod
    def build(
        cls, comparisons: Sequence[Comparison], trees: Sequence[Tree], attributes: tuple[str, ...]
    ) -> "TokenizedDataset":
        """Returns the dataset of n comparisons and their trees, with these attributes; missing labels are NaN."""
        offsets = lambda counts: np.concatenate([[0], np.cumsum(np.asarray(list(counts), np.int64))])
        parts = [part for tree in trees for part in (tree.prefix, *tree.branches)]
        labels = [
            np.full((len(tree.readouts), len(attributes)), np.nan, np.float32)
            if tree.labels is None
            else align_labels(tree.labels, comparison.attributes, attributes)
            for comparison, tree in zip(comparisons, trees, strict=True)
        ]
        places = [comparison.where.rsplit(":", 1) for comparison in comparisons]
        source, sources = _encode([path for path, _ in places])
        subset, subsets = _encode([comparison.subset for comparison in comparisons])
        return cls(
            tokens=np.concatenate([np.zeros(0, np.int32), *parts]),
            token_offsets=offsets(tree.length for tree in trees),
            segments=np.array([len(part) for part in parts], np.int32),
            segment_offsets=offsets(1 + len(tree.branches) for tree in trees),
            readouts=np.array([readout for tree in trees for readout in tree.readouts], np.int32).reshape(-1, 2),
            spans=np.array([span for tree in trees for span in tree.spans], np.int32),
            readout_offsets=offsets(len(tree.readouts) for tree in trees),
            edges=np.array([dataclasses.astuple(edge) for tree in trees for edge in tree.edges], EDGE),
            edge_offsets=offsets(len(tree.edges) for tree in trees),
            labels=np.concatenate([np.zeros((0, len(attributes)), np.float32), *labels]),
            ceiling=np.array([comparison.ceiling for comparison in comparisons], np.float32),
            source=source,
            line=np.array([int(line) for _, line in places], np.int64),
            subset=subset,
            attributes=attributes,
            sources=sources,
            subsets=subsets,
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

    def where(self, i: int) -> str:
        """Returns `path:line` of comparison i, for messages."""
        return f"{self.sources[self.source[i]]}:{self.line[i]}"

    @property
    def subset_names(self) -> list[str]:
        """The subset of each comparison."""
        return [self.subsets[k] for k in self.subset.tolist()]

    def tree(self, i: int) -> Tree:
        """Returns comparison i; its arrays are views."""
        prefix, *branches = self._segments(i)
        readouts = tuple((k, j) for k, j in _slice(self.readouts, self.readout_offsets, i).tolist())
        edges = tuple(Edge(*fields) for fields in _slice(self.edges, self.edge_offsets, i).tolist())
        labels = _slice(self.labels, self.readout_offsets, i) if self.attributes else None
        spans = tuple(_slice(self.spans, self.readout_offsets, i).tolist()) if len(self.spans) else ()
        return Tree(prefix, tuple(branches), readouts, edges, labels, spans)

    def _segments(self, i: int) -> list[np.ndarray]:
        """Returns the prefix and the branches of comparison i, int32 [length] each."""
        ends = np.cumsum(_slice(self.segments, self.segment_offsets, i))
        return np.split(_slice(self.tokens, self.token_offsets, i), ends[:-1])

    def fingerprint(self) -> str:
        """Returns a SHA-256 of everything that training reads of the comparisons."""
        edges = structured_to_unstructured(self.edges, np.float32)
        return _digest(self.tokens, self.segments, self.readouts, edges, self.labels, *self._given_spans())

    def inputs_fingerprint(self) -> str:
        """Returns a SHA-256 of what the model computes on: the tokens and the readouts of each comparison."""
        offsets = self.segment_offsets, self.readout_offsets
        return _digest(self.tokens, self.segments, self.readouts, *offsets, *self._given_spans())

    def _given_spans(self) -> list[np.ndarray]:
        return [self.spans] if len(self.spans) else []

    def model_inputs(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the arrays of packed rows [M, B, ...] as the model reads them; here without a change."""
        return batch

    def overlap(self, other: "TokenizedDataset") -> list[int]:
        """Returns the indices of comparisons with the same tokens as one of `other`, in any order of responses."""
        sums, others = self._sums(), other._sums()
        theirs = {other._key(i) for i in np.flatnonzero(np.isin(others, sums)).tolist()}
        return [i for i in np.flatnonzero(np.isin(sums, others)).tolist() if self._key(i) in theirs]

    def _sums(self) -> np.ndarray:
        """Returns a number for each comparison, int64 [n], that depends on its tokens, but not on their order."""
        sums, offsets, start = [], np.asarray(self.token_offsets), 0
        for part in _parts(self.tokens):
            first, last = np.searchsorted(offsets, [start, start + len(part)])
            sums.append(np.add.reduceat(part, offsets[first:last] - start, dtype=np.int64))
            start += len(part)
        return np.concatenate([np.zeros(0, np.int64), *sums]) * 1_000_003 + self.lengths

    def _key(self, i: int) -> tuple[bytes, ...]:
        prefix, *branches = (segment.tobytes() for segment in self._segments(i))
        return (prefix, *sorted(branches))

    def with_attributes(self, attributes: tuple[str, ...]) -> "TokenizedDataset":
        """Returns the dataset with these attributes in this order, NaN for those that it does not have."""
        labels = align_labels(self.labels, self.attributes, attributes)
        return dataclasses.replace(self, labels=labels, attributes=tuple(attributes))


def concatenate(datasets: Sequence[TokenizedDataset]) -> TokenizedDataset:
    """Returns the datasets as one, with the attributes of all; the tokens are not copied."""
    if len(datasets) == 1:
        return datasets[0]
    attributes = tuple(dict.fromkeys(name for dataset in datasets for name in dataset.attributes))
    datasets = [dataset.with_attributes(attributes) for dataset in datasets]
    joined: dict[str, Any] = {}
    for name in ("token", "segment", "readout", "edge"):
        counts = [np.diff(getattr(dataset, f"{name}_offsets")) for dataset in datasets]
        joined[f"{name}_offsets"] = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    joined["tokens"] = JoinedArrays([part for dataset in datasets for part in _parts(dataset.tokens)])
    for name in ("segments", "readouts", "spans", "edges", "labels", "ceiling", "line"):
        joined[name] = np.concatenate([getattr(dataset, name) for dataset in datasets])
    joined["source"], sources = _encode([d.sources[k] for d in datasets for k in d.source.tolist()])
    joined["subset"], subsets = _encode([name for d in datasets for name in d.subset_names])
    return TokenizedDataset(**joined, attributes=attributes, sources=sources, subsets=subsets)


def _digest(*arrays: np.ndarray | JoinedArrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        for part in _parts(array):
            digest.update(part.ravel().data)
        digest.update(b"|")
    return digest.hexdigest()


def _parts(array: np.ndarray | JoinedArrays) -> Sequence[np.ndarray]:
    return array.parts if isinstance(array, JoinedArrays) else [np.asarray(array)]


def _slice(array: np.ndarray | JoinedArrays, offsets: np.ndarray, i: int) -> np.ndarray:
    offsets = np.asarray(offsets)  # indexing an np.memmap itself is slow
    array = array if isinstance(array, JoinedArrays) else np.asarray(array)
    return array[offsets[i] : offsets[i + 1]]


def _encode(names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the index of each name among the unique ones, int32 [n], and the unique names."""
    index = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([index[name] for name in names], np.int32), tuple(index)
