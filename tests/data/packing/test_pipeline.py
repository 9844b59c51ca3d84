"""Arrays of a step, and the iterator over steps."""

import grain
import numpy as np
import pytest

from rmjax.data.packing import pipeline
from rmjax.data.packing.plan import training_plan
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("synthetic", Tokenizer.load(""), DatasetOptions(), split="train", synthetic_size=30)[0]


@pytest.fixture(scope="module")
def plan(dataset):
    return training_plan(
        dataset.lengths,
        dataset.readout_counts,
        dataset.edge_counts,
        batch_size=7,
        steps=9,
        epochs=0,
        row_length=64,
        microbatch_rows=2,
        seed=3,
    )


def same(a, b):
    return np.array_equal(a["microbatches"], b["microbatches"]) and all(
        np.array_equal(a["batch"][name], b["batch"][name], equal_nan=True) for name in a["batch"]
    )


def test_step_contains_exactly_its_comparisons(dataset, plan):
    for step in range(plan.num_steps):
        item = pipeline.materialize(dataset, plan, step, np.arange(2))
        batch = item["batch"]
        assert batch["tokens"].shape == (plan.sizes.microbatches, 2, 64)
        np.testing.assert_array_equal(item["microbatches"], plan.microbatches(step))
        assert (batch["group"] > 0).sum() == dataset.lengths[plan.comparisons(step)].sum()
        assert (batch["edge_weight"] == 1).sum() == 7
        assert not batch["group"][item["microbatches"][1] :].any()
        found = sorted(batch["tokens"][batch["group"] > 0])
        parts = [dataset.tree(int(i)) for i in plan.comparisons(step)]
        assert found == sorted(np.concatenate([p for t in parts for p in (t.prefix, *t.branches)]))


def test_rows_of_all_hosts_make_up_the_step(dataset, plan):
    whole = pipeline.materialize(dataset, plan, 4, np.arange(2))["batch"]
    hosts = [pipeline.materialize(dataset, plan, 4, np.array([row]))["batch"] for row in range(2)]
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([host[name] for host in hosts], axis=1), array)


@pytest.mark.parametrize("done", [0, 1, 5, 8])
def test_restored_iterator_continues_with_the_same_batches(dataset, plan, done):
    make = lambda: pipeline.make_iterator(dataset, plan, np.arange(2))
    first = make()
    for _ in range(done):
        next(first)
    state = first.get_state()
    rest = list(first)
    assert len(rest) == plan.num_steps - done
    second = make()
    second.set_state(state)
    again = list(second)
    assert len(again) == len(rest)
    assert all(map(same, rest, again))
    assert all(same(item, pipeline.materialize(dataset, plan, done + i, np.arange(2))) for i, item in enumerate(again))


def test_iterator_can_start_at_a_step(dataset, plan):
    iterator = pipeline.make_iterator(dataset, plan, np.arange(2))
    iterator.set_state({"next_index": 6})
    assert isinstance(iterator, grain.DatasetIterator)
    items = list(iterator)
    assert len(items) == 3
    assert same(items[0], pipeline.materialize(dataset, plan, 6, np.arange(2)))
