"""The queue, batching and shared prefixes, with a model that is a plain function."""

import asyncio
import itertools
import threading

import numpy as np
import pytest

from rmjax.core.errors import InputError
from rmjax.data.tokens.trees import common_prefix_length
from rmjax.serving.engine import batch_window
from rmjax.serving.engine.prefixes import PrefixSet
from rmjax.serving.engine.queue import Engine
from rmjax.serving.errors import DeadlineExceeded, NotFinite, Overloaded, RequestError, Unavailable, tensor_name
from rmjax.serving.metrics import Metrics, ModelMetrics

TOKENS = tensor_name("tokens")
POISON = 666  # the device raises on this token


class Model:
    """Scores a sequence with its sum, and with NaN if the sum is 13; records its batches; waits for `gate`."""

    def __init__(self):
        self.batches, self.gate, self.began = [], threading.Event(), threading.Event()
        self.gate.set()

    def score(self, trees):
        whole = [[np.concatenate([tree.prefix, branch]) for branch in tree.branches] for tree in trees]
        self.batches.append([len(sequence) for tree in whole for sequence in tree])
        self.began.set()
        assert self.gate.wait(60)
        if any(POISON in sequence for tree in whole for sequence in tree):
            raise RuntimeError("device lost")
        sums = [np.array([[sequence.sum()] for sequence in tree], np.float32) for tree in whole]
        return [np.where(rewards == 13, np.nan, rewards) for rewards in sums]


def run(test, **options):
    async def body():
        model = Model()
        engine = Engine(model.score, lambda: None, **({"max_length": 8, "batch_tokens": 10, "queue_size": 6} | options))
        await engine.start()
        await asyncio.wait_for(test(engine, model), 60)
        model.gate.set()
        await asyncio.wait_for(engine.drain(), 60)

    asyncio.run(body())


def arrays(*sequences):
    return [np.array(sequence, np.int32) for sequence in sequences]


async def hold(engine, model):
    """Keeps the model busy with one request until `gate` is opened; returns its task."""
    model.gate.clear()
    model.began.clear()
    task = asyncio.create_task(engine.submit(arrays([1]), TOKENS))
    await asyncio.to_thread(model.began.wait, 60)
    return task


def test_requests_get_their_own_rewards():
    async def body(engine, model):
        found = await asyncio.gather(*(engine.submit(arrays([i], [i, 1]), TOKENS) for i in range(3)))
        np.testing.assert_array_equal(found, [[[i], [i + 1]] for i in range(3)])

    run(body)


def test_waiting_requests_are_batched_by_tokens():
    async def body(engine, model):
        held = await hold(engine, model)
        tasks = [asyncio.create_task(engine.submit(arrays([n] * n), TOKENS)) for n in (4, 6, 5, 1)]
        await asyncio.sleep(0.05)
        model.gate.set()
        await asyncio.gather(held, *tasks)
        assert model.batches == [[1], [4, 6], [5, 1]]

    run(body)


def test_arriving_requests_join_a_batch(monkeypatch):
    monkeypatch.setattr(batch_window, "MAX_WAIT", 60.0)  # on a busy machine, 4 ms may pass between two of them

    async def body(engine, model):
        tasks = []
        for _ in range(4):  # as delivered by grpc.aio: one request in several iterations of the event loop
            tasks.append(asyncio.create_task(engine.submit(arrays([1, 2]), TOKENS)))
            for _ in range(3):
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert model.batches == [[2, 2, 2, 2]]

    run(body)


def test_a_full_queue_rejects_requests_and_recovers():
    async def body(engine, model):
        held = await hold(engine, model)
        waiting = asyncio.create_task(engine.submit(arrays(*[[2]] * 5), TOKENS))
        await asyncio.sleep(0.05)
        with pytest.raises(
            Overloaded, match="5 sequences with 5 tokens are queued; 2 sequences with 2 tokens more do not fit"
        ):
            await engine.submit(arrays([1], [1]), TOKENS)
        model.gate.set()
        await asyncio.gather(held, waiting)
        assert (await engine.submit(arrays([3]), TOKENS)).tolist() == [[3]]

    run(body)


def test_invalid_sequences_are_rejected_by_name():
    async def body(engine, model):
        for sequences, message in (
            (arrays([1], []), "'tokens', row 1 has no tokens"),
            (arrays([1] * 9), "row 0 has 9 tokens; expected at most 8"),
            (arrays(*[[1]] * 7), "7 sequences with 7 tokens, which can never fit"),
            ([], "no sequences"),
        ):
            with pytest.raises(RequestError, match=message):
                await engine.submit(sequences, TOKENS)
        assert not model.batches

    run(body)


def test_a_non_finite_reward_fails_only_its_request():
    async def body(engine, model):
        held = await hold(engine, model)
        bad = asyncio.create_task(engine.submit(arrays([2], [13]), TOKENS))
        good = asyncio.create_task(engine.submit(arrays([4]), TOKENS))
        await asyncio.sleep(0.05)
        model.gate.set()
        with pytest.raises(NotFinite, match=r"rewards\[1, 0\] is nan, not finite"):
            await bad
        assert (await good).tolist() == [[4]]
        await held
        assert model.batches == [[1], [1, 1, 1]]

    run(body)


def test_the_engine_continues_after_a_device_error():
    async def body(engine, model):
        with pytest.raises(RuntimeError, match="device lost"):
            await engine.submit(arrays([POISON]), TOKENS)
        assert (await engine.submit(arrays([3]), TOKENS)).tolist() == [[3]]

    run(body)


def test_a_cancelled_request_leaves_the_queue():
    async def body(engine, model):
        held = await hold(engine, model)
        gone = asyncio.create_task(engine.submit(arrays(*[[2]] * 6), TOKENS))
        await asyncio.sleep(0.05)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        stays = asyncio.create_task(engine.submit(arrays(*[[3]] * 6), TOKENS))
        await asyncio.sleep(0.05)
        model.gate.set()
        await asyncio.gather(held, stays)
        assert model.batches == [[1], [1] * 6]

    run(body)


def test_draining_completes_queued_requests_and_rejects_new_ones():
    async def body(engine, model):
        held = await hold(engine, model)
        waiting = asyncio.create_task(engine.submit(arrays([2]), TOKENS))
        await asyncio.sleep(0.05)
        draining = asyncio.create_task(engine.drain())
        await asyncio.sleep(0.05)
        with pytest.raises(Unavailable, match="draining"):
            await engine.submit(arrays([1]), TOKENS)
        model.gate.set()
        assert (await waiting).tolist() == [[2]]
        await asyncio.gather(held, draining)

    run(body)


def test_requests_before_the_warm_up_are_rejected():
    async def body():
        engine = Engine(None, lambda: None, max_length=8, batch_tokens=8, queue_size=8)
        with pytest.raises(Unavailable, match="warming up"):
            await engine.submit(arrays([1]), TOKENS)

    asyncio.run(body())


def waiting(engine, *calls, **options):
    return [asyncio.create_task(engine.submit(arrays(*sequences), TOKENS, **options)) for sequences in calls]


def test_of_many_requests_only_the_poisoned_ones_fail():
    async def body(engine, model):
        held = await hold(engine, model)
        prompt = [5] * 20
        tasks = waiting(engine, *([[*prompt, i]] for i in range(31)), [[*prompt, POISON]], [[13]])
        await asyncio.sleep(0.05)
        model.gate.set()
        found = await asyncio.gather(held, *tasks, return_exceptions=True)
        assert [float(rewards[0, 0]) for rewards in found[1:32]] == [100 + i for i in range(31)]
        assert isinstance(found[32], RuntimeError)
        assert isinstance(found[33], NotFinite)

    run(body, max_length=1024, batch_tokens=1024, queue_size=64)


def test_a_non_finite_branch_fails_only_its_request():
    async def body(engine, model):
        held = await hold(engine, model)
        zeros = [0] * 20
        tasks = waiting(engine, [[*zeros, 1]], [[*zeros, 13]], [[*zeros, 3]])
        await asyncio.sleep(0.05)
        model.gate.set()
        found = await asyncio.gather(held, *tasks, return_exceptions=True)
        assert [type(answer) for answer in found[1:]] == [np.ndarray, NotFinite, np.ndarray]

    run(body, max_length=64, batch_tokens=64)


def test_the_queue_is_bounded_in_tokens():
    async def body(engine, model):
        held = await hold(engine, model)
        tasks = waiting(engine, [[2] * 8], [[3] * 7])
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded, match="2 sequences with 15 tokens are queued") as raised:
            await engine.submit(arrays([1] * 2), TOKENS)
        assert 0.1 <= raised.value.retry_after <= 30
        with pytest.raises(RequestError, match="3 sequences with 19 tokens"):
            await engine.submit(arrays([1] * 9, [1] * 9, [1]), TOKENS)
        model.gate.set()
        await asyncio.gather(held, *tasks)

    run(body, queue_tokens=18, max_length=9)  # of which 2 are reserved for clients without queued sequences
    with pytest.raises(InputError, match="queue_tokens is 8"):
        Engine(None, None, max_length=9, batch_tokens=8, queue_size=8, queue_tokens=8)


def test_expired_requests_fail_at_once_and_are_never_scored():
    async def body(engine, model):
        held = await hold(engine, model)
        loop = asyncio.get_running_loop()
        (late,) = waiting(engine, [[2], [3]], deadline=loop.time() + 0.02)
        with pytest.raises(DeadlineExceeded):
            await late  # while the model is still busy
        with pytest.raises(DeadlineExceeded):
            await engine.submit(arrays([4]), TOKENS, deadline=loop.time() - 1)
        (kept,) = waiting(engine, [[5]], deadline=loop.time() + 60)
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(held, kept)
        assert model.batches == [[1], [1]]

    run(body)


def test_requests_that_would_expire_in_the_queue_are_rejected_at_once():
    async def body(engine, model):
        loop = asyncio.get_running_loop()
        held = await hold(engine, model)
        tasks = waiting(engine, [[2] * 5])
        await asyncio.sleep(0)
        engine._batch_seconds = 0.5  # the running batch, half a queued batch, and that of the request
        with pytest.raises(Overloaded, match=r"5 tokens are queued, expected time to an answer 1\.2 seconds"):
            await engine.submit(arrays([3]), TOKENS, deadline=loop.time() + 1.2)
        tasks += waiting(engine, [[3]], deadline=loop.time() + 10)
        await asyncio.sleep(0)
        model.gate.set()
        await asyncio.gather(held, *tasks)

    run(body)


def test_no_client_blocks_the_others():
    async def body(engine, model):
        held = await hold(engine, model)
        submit = lambda client: asyncio.create_task(engine.submit(arrays([1]), TOKENS, client=client))
        waiting = [submit("greedy") for _ in range(14)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await submit("greedy")
        waiting.append(submit("other"))
        await asyncio.sleep(0)
        model.gate.set()
        assert len(await asyncio.gather(held, *waiting)) == 16

    run(body, queue_size=16)


def test_clients_are_served_round_robin():
    async def body(engine, model):
        held = await hold(engine, model)
        tasks = waiting(engine, *([[7] * 4 + [i]] for i in range(4)), client="greedy")
        tasks += waiting(engine, [[1, 2]], client="modest") + waiting(engine, [[3, 4, 5]], client="third")
        await asyncio.sleep(0.05)
        model.gate.set()
        await asyncio.gather(held, *tasks)
        assert model.batches[1:] == [[5, 2, 3], [5, 5], [5]]

    run(body, queue_size=16)


def test_samples_of_one_prompt_stay_together_without_starving_other_clients():
    async def body(engine, model):
        held = await hold(engine, model)
        tasks = waiting(engine, [[9] * 16 + [i] for i in range(20)], client="greedy")
        tasks += waiting(engine, [[1, 2]], client="modest")
        await asyncio.sleep(0.05)
        model.gate.set()
        await asyncio.gather(held, *tasks)
        assert model.batches[1] == [17] * 4  # 16 + 4 unique tokens are 20; the prompt counts once
        assert 2 in model.batches[2]

    run(body, queue_size=32, queue_tokens=1000, max_length=20, batch_tokens=20)


def test_requests_in_a_batch_share_their_prompt():
    async def body():
        metrics = Metrics()
        counted, trees = Model(), []

        def score(given):
            trees.extend(given)
            return counted.score(given)

        engine = Engine(
            score, lambda: None, max_length=64, batch_tokens=256, queue_size=64, metrics=ModelMetrics(metrics, "m")
        )
        await engine.start()
        held = await hold(engine, counted)
        prompt, other = list(range(100, 130)), list(range(200, 230))
        calls = [[[*prompt, 1], [*other, 2], [*prompt, 3, 4]], [[*prompt, 5]], [[*other, 6]]]
        tasks = waiting(engine, *calls)
        await asyncio.sleep(0.05)
        counted.gate.set()
        found = await asyncio.gather(*tasks)
        await held
        for rewards, sequences in zip(found, calls, strict=True):
            assert rewards[:, 0].tolist() == [sum(sequence) for sequence in sequences]
        assert sorted(tree.length for tree in trees[1:]) == [32, 34]
        value = lambda name: metrics.registry.get_sample_value(f"rmjax_{name}", {"model": "m"})
        assert value("tokens_total") == 1 + 31 * 4 + 32
        assert value("unique_tokens_total") == 1 + 32 + 34
        assert value("batches_total") == 2
        assert value("sequences_total") == 6
        assert value("queue_tokens") == value("compilations_after_warm_up_total") == 0
        await engine.drain()

    asyncio.run(body())


def group_by_prompt(sequences, longest):
    prefixes = PrefixSet()
    for sequence in sequences:
        prefixes.add(sequence, np.inf)
    return prefixes.groups(longest)


def test_prefix_set_returns_the_longest_shared_prefix():
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 1000, n).astype(np.int32) for n in (16, 20, 40)]
    prefixes, seen = PrefixSet(), []
    for _ in range(200):
        cut = prompts[rng.integers(3)][: rng.integers(1, 41)]
        sequence = np.concatenate([cut, rng.integers(0, 3, rng.integers(0, 3)).astype(np.int32)])
        most = max((common_prefix_length(sequence, other) for other in seen), default=0)
        assert prefixes.add(sequence, np.inf) == (most if most >= 16 else 0)
        seen.append(sequence)


def test_groups_save_tokens_and_fit():
    rng = np.random.default_rng(0)
    for longest in (64, 256):
        prompts = [rng.integers(0, 3, n) for n in (1, 20, 40, 60)]
        sequences = [
            np.concatenate([prompts[rng.integers(4)], rng.integers(0, 3, rng.integers(1, 5))]) for _ in range(40)
        ]
        sequences = [s.astype(np.int32) for s in [*sequences, prompts[3], prompts[3]] if len(s) <= longest]
        groups = group_by_prompt(sequences, longest)
        assert sorted(itertools.chain(*(members for members, _ in groups))) == list(range(len(sequences)))
        unique = 0
        for members, shared in groups:
            common = 0
            if len(members) > 1:
                columns = zip(*(sequences[i][:-1].tolist() for i in members), strict=False)
                common = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
            assert shared == common
            unique += (tokens := common + sum(len(sequences[i]) - common for i in members))
            assert tokens <= longest
        assert unique < 0.7 * sum(map(len, sequences))
    assert group_by_prompt(arrays([1] * 20 + [2], [3], [1] * 20 + [4]), 64) == [([0, 2], 20), ([1], 0)]
    assert group_by_prompt([], 64) == []
