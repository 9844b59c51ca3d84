"""The thread that runs functions for the event loop."""

import asyncio
import sys
import threading

import pytest

from rmjax.serving.engine.worker import Worker


def test_runs_in_order_in_one_thread_and_raises_what_the_function_raises():
    async def run():
        worker, found = Worker("test"), []
        work = lambda number: found.append((number, threading.current_thread().name)) or number
        answers = await asyncio.gather(*(worker.run(work, number) for number in range(5)))
        with pytest.raises(KeyError, match="absent"):
            await worker.run({}.__getitem__, "absent")
        with pytest.raises(SystemExit):  # not an Exception
            await worker.run(sys.exit, 3)
        assert await worker.run(int, "7") == 7
        worker.close()
        return answers, found

    assert asyncio.run(run()) == ([0, 1, 2, 3, 4], [(number, "test") for number in range(5)])


def test_a_cancelled_call_still_runs_and_close_waits_for_it():
    async def run():
        worker, begun, proceed, ended = Worker("test"), threading.Event(), threading.Event(), threading.Event()

        def work():
            begun.set()
            proceed.wait(10)
            ended.set()

        call = asyncio.create_task(worker.run(work))
        await asyncio.to_thread(begun.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not ended.is_set()
        proceed.set()
        await asyncio.to_thread(worker.close)
        await asyncio.sleep(0)  # the result of the cancelled call arrives, and is dropped
        return ended.is_set()

    assert asyncio.run(run())
