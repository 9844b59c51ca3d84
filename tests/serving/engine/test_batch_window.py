"""When the wait before a batch ends, and when it is skipped."""

import asyncio

import pytest

from rmjax.serving.engine.batch_window import BatchWindow


class Arrivals:
    """One more request arrives after every `every` calls, `most` requests in all."""

    def __init__(self, every, most):
        self.every, self.most, self.calls = every, most, 0

    def __call__(self):
        self.calls += 1
        return min(1 + (self.calls - 1) // self.every if self.every else 1, self.most)


@pytest.mark.parametrize("every", [1, 3, 6])
def test_waits_while_requests_arrive(every):
    arrivals = Arrivals(every, 5)
    asyncio.run(BatchWindow().wait(arrivals))
    assert arrivals() == 5


def test_ends_after_the_maximum_wait():
    async def run():
        began = asyncio.get_running_loop().time()
        await BatchWindow().wait(Arrivals(1, 10**9))
        return asyncio.get_running_loop().time() - began

    assert 0.004 <= asyncio.run(run()) < 1


def test_single_requests_wait_less_and_less_often():
    window, single, waited = BatchWindow(), Arrivals(0, 1), []

    async def run():
        for _ in range(100):
            before = single.calls
            await window.wait(single)
            waited.append(single.calls > before)

    asyncio.run(run())
    assert [i for i, one in enumerate(waited) if one] == [0, 2, 6, 14, 30, 62, 94]


def test_waits_again_once_requests_are_concurrent():
    window = BatchWindow()

    async def run():
        for _ in range(8):
            await window.wait(Arrivals(0, 1))  # the last wait, the fourth, is followed by seven skipped ones
        for _ in range(7):
            await window.wait(Arrivals(1, 3))
        for _ in range(3):
            arrivals = Arrivals(1, 3)
            await window.wait(arrivals)
            assert arrivals() == 3

    asyncio.run(run())
