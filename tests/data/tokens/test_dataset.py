import dataclasses

import numpy as np
import pytest

from rmjax.data.records.sources import ReadReport
from rmjax.data.schema import Comparison, Edge
from rmjax.data.tokens.dataset import concatenate
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions, tokenize
from rmjax.data.tokens.tokenizer import Tokenizer

EDGES = (Edge(1, 0, 0.5, 0.25, 3.0, 0.75), Edge(0, 1, target=0.5))


def make(texts, where="a:1", subset="", **fields):
    comparison = Comparison(
        tuple(texts), True, **{"edges": (), "labels": None} | fields, where=where, record={}, subset=subset
    )
    return tokenize([comparison], Tokenizer.load(""), DatasetOptions(), "test", ReadReport())[0]


def test_edges_are_named_fields_of_the_types_of_the_batch():
    edges = make(["p yes", "p no"], edges=EDGES).edges
    assert edges.dtype.names == ("winner", "loser", "margin", "weight", "strength", "target")
    assert [edges.dtype[name] for name in edges.dtype.names] == [np.int32] * 2 + [np.float32] * 4
    assert edges["winner"].tolist() == [1, 0]
    assert edges["strength"].tolist() == [3.0, 1.0]


def test_concatenated_datasets_keep_their_trees_places_and_subsets():
    first = make(["p yes", "p no"], "dir/a.jsonl:7", "chat", edges=EDGES)
    second = make(["q"], "b:2", labels=np.array([[2.0]], np.float32), attributes=("x",))
    third = make(["r"], "dir/a.jsonl:12", "chat", labels=np.array([[3.0]], np.float32), attributes=("y",))
    joined = concatenate([first, second, third])
    assert joined.attributes == ("x", "y")
    np.testing.assert_array_equal(joined.labels, [[np.nan] * 2] * 2 + [[2, np.nan], [np.nan, 3]])
    assert [joined.where(i) for i in range(3)] == ["dir/a.jsonl:7", "b:2", "dir/a.jsonl:12"]
    assert joined.subset_names == ["chat", "", "chat"]
    assert (joined.sources, joined.subsets) == (("dir/a.jsonl", "b"), ("chat", ""))
    for i, dataset in enumerate((first, second, third)):
        tree, expected = joined.tree(i), dataset.tree(0)
        assert tree.readouts == expected.readouts
        assert tree.edges == expected.edges
        np.testing.assert_array_equal(np.concatenate(tree.branches), np.concatenate(expected.branches))


def test_tokens_of_several_sources_are_not_copied():
    one, two = make(["p yes", "p no"]), make(["q yes", "q no", "q"], "b:1")
    joined = concatenate([one, make(["r"]), two])
    assert np.shares_memory(joined.tree(0).prefix, one.tokens)
    assert np.shares_memory(joined.tree(2).branches[1], two.tokens)
    assert len(joined.tokens) == len(one.tokens) + 1 + 1 + len(two.tokens)
    whole = dataclasses.replace(joined, tokens=np.concatenate(joined.tokens.parts))
    assert joined.fingerprint() == whole.fingerprint()
    assert joined.overlap(whole) == [0, 1, 2]


def test_concatenate_returns_a_single_dataset_itself():
    dataset = make(["p yes", "p no"])
    assert concatenate([dataset]) is dataset


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("pairs", "db062f49e72aa32a"),
        ("kwise", "59b84293cd4c1a3a"),
        ("regression", "f8ef5db96cf4751f"),
        ("process", "1f6c3621fe4d9fb6"),
    ],
)
def test_fingerprints_do_not_change_between_versions(format, expected):
    """Workdirs store the fingerprint of their training data, which is compared when a run is resumed."""
    options = DatasetOptions(format=format)
    dataset, _ = load_dataset("synthetic", Tokenizer.load(""), options, split="train", synthetic_size=50)
    assert dataset.fingerprint().startswith(expected)


def test_overlap_ignores_the_order_of_responses():
    one = make(["Is it? Yes.", "Is it? No."])
    other = concatenate([make(["Else? Yes.", "Else? No."]), make(["Is it? No.", "Is it? Yes."])])
    assert other.overlap(one) == [1]
    assert one.overlap(other) == [0]
