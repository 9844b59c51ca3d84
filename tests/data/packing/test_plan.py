import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rmjax.core.errors import InputError
from rmjax.data.packing.order import make_mixture
from rmjax.data.packing.plan import choose_row_length, evaluation_plan, short_row_length, training_plan
from rmjax.data.packing.rows import pack_steps


def make(n=23, batch_size=5, steps=0, epochs=2.0, row_length=64, short_length=0, microbatch_rows=2, seed=3):
    lengths = np.random.default_rng(0).integers(1, 60, n)
    ones = np.ones(n, int)
    return training_plan(
        lengths,
        2 * ones,
        ones,
        batch_size=batch_size,
        steps=steps,
        epochs=epochs,
        row_length=row_length,
        short_length=short_length,
        microbatch_rows=microbatch_rows,
        seed=seed,
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.integers(0, 5))
def test_each_comparison_is_drawn_once_an_epoch(n, batch_size, epochs, seed):
    plan = make(n=n, batch_size=batch_size, epochs=epochs, seed=seed)
    steps = [plan.comparisons(step) for step in range(plan.num_steps)]
    assert all(len(step) == batch_size for step in steps[:-1])
    stream = np.concatenate(steps)
    assert len(stream) == n * epochs
    for epoch in range(epochs):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_steps_are_all_full():
    plan = make(steps=11, epochs=0)
    assert [len(plan.comparisons(step)) for step in range(11)] == [5] * 11


@pytest.mark.parametrize(("row_length", "microbatch_rows"), [(64, 1), (128, 4), (4096, 8)])
def test_comparisons_of_a_step_do_not_depend_on_packing(row_length, microbatch_rows):
    plan, other = make(), make(row_length=row_length, microbatch_rows=microbatch_rows)
    for step in range(plan.num_steps):
        assert plan.comparisons(step).tolist() == other.comparisons(step).tolist()
        packed = collections.Counter(i for row in other.rows(step) for i in row)
        assert packed == collections.Counter(plan.comparisons(step).tolist())


def test_order_depends_on_the_seed():
    assert make(seed=1).comparisons(0).tolist() != make(seed=2).comparisons(0).tolist()


def test_sizes_bound_every_step():
    plan = make()
    for step in range(plan.num_steps):
        rows = plan.rows(step)
        full, total = plan.microbatches(step)
        assert full == total <= plan.sizes.microbatches
        assert max(2 * len(row) for row in rows) <= plan.sizes.readouts
    assert plan.sizes.tokens == 2 * plan.lengths.sum()
    assert 0 < plan.sizes.fill <= 1


@pytest.mark.parametrize("microbatch_rows", [1, 2])
def test_short_rows_are_last_and_their_microbatches_are_counted(microbatch_rows):
    plan, same = make(short_length=32, microbatch_rows=microbatch_rows), make(microbatch_rows=microbatch_rows)
    padded_tokens = 0
    for step in range(plan.num_steps):
        rows = plan.rows(step)
        assert sorted(map(tuple, rows)) == sorted(map(tuple, same.rows(step)))
        used = [plan.lengths[row].sum() for row in rows]
        full, total = plan.microbatches(step)
        parts = [used[i : i + microbatch_rows] for i in range(0, len(used), microbatch_rows)]
        assert len(parts) == total
        assert [max(part) <= 32 for part in parts] == [i >= full for i in range(total)]
        padded_tokens += microbatch_rows * (64 * full + 32 * (total - full))
    assert plan.sizes.padded_tokens == padded_tokens < same.sizes.padded_tokens
    assert sum(plan.padded_tokens([step]) for step in range(plan.num_steps)) == padded_tokens


def first_fit_decreasing(lengths, row_length):
    """The definition: each tree, longest first (ties by index), in the first row with enough free tokens."""
    rows = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = (row for row in rows if sum(lengths[k] for k in row) + lengths[i] <= row_length)
        if (row := next(fits, None)) is None:
            rows.append(row := [])
        row.append(i)
    return rows


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=120),
    row_length=st.integers(40, 100),
    batch_size=st.integers(1, 30),
    short=st.booleans(),
    epochs=st.sampled_from([0.4, 1.0, 2.5]),
    microbatch_rows=st.integers(1, 3),
    block=st.sampled_from([1, 50, 1 << 18]),
)
def test_the_plan_equals_its_definition(lengths, row_length, batch_size, short, epochs, microbatch_rows, block):
    short_length = row_length // 2 if short else 0
    counts = np.arange(len(lengths)) % 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmjax.data.packing.plan._BLOCK", block)
        made = training_plan(
            np.array(lengths),
            counts + 1,
            counts,
            batch_size=batch_size,
            steps=0,
            epochs=epochs,
            row_length=row_length,
            short_length=short_length,
            microbatch_rows=microbatch_rows,
            seed=1,
        )
        sizes = made.sizes
    all_rows, most = [], 0
    for step in range(made.num_steps):
        chosen = made.comparisons(step).tolist()
        packed = first_fit_decreasing([lengths[i] for i in chosen], row_length)
        rows = [[chosen[i] for i in row] for row in packed]
        rows.sort(key=lambda row: sum(lengths[i] for i in row) <= short_length)  # stable
        assert made.rows(step) == rows
        full = sum(sum(lengths[i] for i in row) > short_length for row in rows)
        assert made.microbatches(step).tolist() == [-(-full // microbatch_rows), -(-len(rows) // microbatch_rows)]
        all_rows, most = all_rows + rows, max(most, -(-len(rows) // microbatch_rows))
    assert sizes.microbatches == most
    assert sizes.readouts == max(sum(i % 4 + 1 for i in row) for row in all_rows)
    assert sizes.edges == max(sum(i % 4 for i in row) for row in all_rows)
    assert sizes.tokens == sum(lengths[i] for row in all_rows for i in row)


def test_a_plan_is_packed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "rmjax.data.packing.plan.pack_steps", lambda *arguments: calls.append(arguments) or pack_steps(*arguments)
    )
    made = make(n=23, batch_size=5, epochs=1.0)
    assert made.sizes.tokens == made.lengths.sum()
    assert [len(arguments[0]) for arguments in calls] == [4, 1]  # the full steps, and the shorter last one
    for step in range(made.num_steps):
        made.rows(step)
    assert len(calls) == 2


def test_a_comparison_longer_than_a_row_is_named():
    with pytest.raises(InputError, match=r"comparison 14 has 58 tokens.*at most row_length = 50"):
        _ = make(row_length=50).sizes


def test_evaluation_plan_covers_all_comparisons_in_order():
    lengths = np.arange(1, 12)
    plan = evaluation_plan(lengths, lengths, lengths, batch_size=4, row_length=64, microbatch_rows=1)
    assert np.concatenate([plan.comparisons(s) for s in range(plan.num_steps)]).tolist() == list(range(11))


@pytest.mark.parametrize(
    ("steps", "epochs", "last"), [(3, 2.0, [5, 5, 5]), (5, 1.0, [5, 5, 5, 5, 3]), (9, 0.5, [5, 5, 2])]
)
def test_a_run_ends_at_steps_or_epochs_whichever_comes_first(steps, epochs, last):
    plan = make(steps=steps, epochs=epochs)
    assert [len(plan.comparisons(step)) for step in range(plan.num_steps)] == last


def test_steps_or_epochs_are_required():
    with pytest.raises(InputError, match=r"config\.train\.steps is 0 and config\.train\.epochs is 0; set one of them"):
        make(steps=0, epochs=0)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=50), st.sampled_from([1, 2, 4]))
@settings(max_examples=20, deadline=None)
def test_chosen_row_length_fits_the_longest_comparison(lengths, multiple):
    chosen = choose_row_length(np.array(lengths), 8, 2, multiple)
    assert chosen >= max(lengths)
    assert chosen % multiple == 0


@pytest.mark.parametrize(("batch_size", "short_microbatches"), [(1, True), (6, True), (6, False)])
def test_chosen_row_length_has_the_least_padding(batch_size, short_microbatches):
    lengths = np.random.default_rng(0).integers(300, 700, batch_size * 16)

    def padded_tokens(row_length):
        made = training_plan(
            lengths,
            lengths,
            lengths,
            batch_size=batch_size,
            steps=0,
            epochs=1.0,
            seed=0,
            row_length=row_length,
            short_length=short_row_length(row_length) if short_microbatches else 0,
            microbatch_rows=1,
        )
        return made.sizes.padded_tokens

    # Steps are drawn in another order than the sample's, so a few percent may separate the two.
    chosen = choose_row_length(lengths, batch_size, 1, short_microbatches=short_microbatches)
    assert padded_tokens(chosen) <= 1.05 * min(padded_tokens(row_length) for row_length in range(704, 2816, 64))


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    weights=st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
)
def test_mixture_draws_each_source_by_weight_and_without_early_repeats(sizes, weights):
    mixture = make_mixture(sizes, weights[: len(sizes)])
    epoch = sum(draws for _, draws in mixture)
    total = sum(sizes)
    ones = np.ones(total, int)
    made = training_plan(
        ones,
        2 * ones,
        ones,
        batch_size=epoch,
        steps=7,
        epochs=0,
        row_length=64,
        microbatch_rows=1,
        seed=3,
        mixture=mixture,
    )
    starts = np.concatenate([[0], np.cumsum(sizes)])
    drawn = [made.comparisons(step) for step in range(7)]
    for source, (size, draws) in enumerate(mixture):
        own = [d[(d >= starts[source]) & (d < starts[source + 1])] for d in drawn]
        assert [len(part) for part in own] == [draws] * 7
        counts = np.bincount(np.concatenate(own) - starts[source], minlength=size)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([3, 4], [1.0], "has 1 entry, config.data.train 2 sources"),
        ([3, 4], [1.0, 0.0], "holds 0.0"),
        ([3, 0], [1.0, 1.0], "source 2 of"),
    ],
)
def test_bad_mixture_raises(sizes, weights, message):
    with pytest.raises(InputError, match=message):
        make_mixture(sizes, weights)
