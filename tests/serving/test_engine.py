import asyncio
import threading

import numpy as np
import pytest

from rmjax.serving.engine import Engine, NotFinite, NotServing, Overloaded, RequestError


class Model:
    """Scores a sequence with its sum; notes its batches; waits while `gate` is closed."""

    def __init__(self):
        self.batches, self.gate, self.began = [], threading.Event(), threading.Event()
        self.gate.set()

    def score(self, trees):
        self.batches.append([len(tree.branches[0]) for tree in trees])
        self.began.set()
        assert self.gate.wait(10)
        sums = [int(tree.branches[0].sum()) for tree in trees]
        if -1 in sums:
            raise RuntimeError("device lost")
        return [np.array([[np.nan if total == 13 else total]], np.float32) for total in sums]


def run(test, **options):
    async def body():
        model = Model()
        engine = Engine(model.score, lambda: None, **({"max_length": 8, "batch_tokens": 10, "queue_size": 6} | options))
        await engine.start()
        await asyncio.wait_for(test(engine, model), 20)
        model.gate.set()
        await asyncio.wait_for(engine.drain(), 5)

    asyncio.run(body())


def arrays(*sequences):
    return [np.array(sequence, np.int32) for sequence in sequences]


async def hold(engine, model):
    """Occupies the model with one request; returns its task."""
    model.gate.clear()
    model.began.clear()
    task = asyncio.create_task(engine.submit(arrays([1]), "tokens"))
    await asyncio.to_thread(model.began.wait, 5)
    return task


def test_requests_get_their_own_rewards():
    async def body(engine, model):
        found = await asyncio.gather(*(engine.submit(arrays([i], [i, 1]), "tokens") for i in range(3)))
        np.testing.assert_array_equal(found, [[[i], [i + 1]] for i in range(3)])

    run(body)


def test_waiting_requests_are_batched_by_tokens():
    async def body(engine, model):
        held = await hold(engine, model)
        tasks = [asyncio.create_task(engine.submit(arrays([1] * n), "tokens")) for n in (4, 6, 5, 1)]
        await asyncio.sleep(0.05)
        model.gate.set()
        await asyncio.gather(held, *tasks)
        assert model.batches == [[1], [4, 6], [5, 1]]

    run(body)


def test_a_full_queue_refuses_and_recovers():
    async def body(engine, model):
        held = await hold(engine, model)
        waiting = asyncio.create_task(engine.submit(arrays(*[[2]] * 5), "tokens"))
        await asyncio.sleep(0.05)
        with pytest.raises(Overloaded, match="5 sequences wait and 2 more"):
            await engine.submit(arrays([1], [1]), "tokens")
        model.gate.set()
        await asyncio.gather(held, waiting)
        assert (await engine.submit(arrays([3]), "tokens")).tolist() == [[3]]

    run(body)


def test_bad_sequences_are_refused_by_name():
    async def body(engine, model):
        for sequences, words in ((arrays([1], []), "'tokens', row 1 has no tokens"),
                                 (arrays([1] * 9), "row 0 has 9 tokens; at most 8"),
                                 (arrays(*[[1]] * 7), "7 sequences; at most 6")):  # fmt: skip
            with pytest.raises(RequestError, match=words):
                await engine.submit(sequences, "tokens")
        assert not model.batches

    run(body)


def test_a_reward_that_is_not_finite_fails_its_request_alone():
    async def body(engine, model):
        held = await hold(engine, model)
        bad = asyncio.create_task(engine.submit(arrays([2], [13]), "tokens"))
        good = asyncio.create_task(engine.submit(arrays([4]), "tokens"))
        await asyncio.sleep(0.05)
        model.gate.set()
        with pytest.raises(NotFinite):
            await bad
        assert (await good).tolist() == [[4]]
        await held
        assert model.batches == [[1], [1, 1, 1]]

    run(body)


def test_the_engine_outlives_a_failing_device():
    async def body(engine, model):
        with pytest.raises(RuntimeError, match="device lost"):
            await engine.submit(arrays([-1]), "tokens")
        assert (await engine.submit(arrays([3]), "tokens")).tolist() == [[3]]

    run(body)


def test_a_cancelled_request_leaves_the_queue():
    async def body(engine, model):
        held = await hold(engine, model)
        gone = asyncio.create_task(engine.submit(arrays(*[[2]] * 6), "tokens"))
        await asyncio.sleep(0.05)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        stays = asyncio.create_task(engine.submit(arrays(*[[3]] * 6), "tokens"))
        await asyncio.sleep(0.05)
        model.gate.set()
        await asyncio.gather(held, stays)
        assert model.batches == [[1], [1] * 6]

    run(body)


def test_draining_answers_what_waits_and_refuses_more():
    async def body(engine, model):
        held = await hold(engine, model)
        waiting = asyncio.create_task(engine.submit(arrays([2]), "tokens"))
        await asyncio.sleep(0.05)
        draining = asyncio.create_task(engine.drain())
        await asyncio.sleep(0.05)
        with pytest.raises(NotServing, match="draining"):
            await engine.submit(arrays([1]), "tokens")
        model.gate.set()
        assert (await waiting).tolist() == [[2]]
        await asyncio.gather(held, draining)

    run(body)


def test_nothing_is_taken_before_the_warm_up():
    async def body():
        engine = Engine(None, lambda: None, max_length=8, batch_tokens=8, queue_size=8)
        with pytest.raises(NotServing, match="warming up"):
            await engine.submit(arrays([1]), "tokens")

    asyncio.run(body())
