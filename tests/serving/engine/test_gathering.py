import asyncio

import pytest

from rmjax.serving.engine.gathering import Gathering


class Arrivals:
    """Somebody arrives every so many times that it is asked."""

    def __init__(self, every, most):
        self.every, self.most, self.asked = every, most, 0

    def __call__(self):
        self.asked += 1
        return min(1 + (self.asked - 1) // self.every if self.every else 1, self.most)


@pytest.mark.parametrize("every", [1, 3, 6])
def test_waits_while_somebody_arrives(every):
    arrivals = Arrivals(every, 5)
    asyncio.run(Gathering()(arrivals))
    assert arrivals() == 5


def test_ends_though_they_go_on_arriving():
    async def run():
        began = asyncio.get_running_loop().time()
        await Gathering()(Arrivals(1, 10**9))
        return asyncio.get_running_loop().time() - began

    assert 0.004 <= asyncio.run(run()) < 1


def test_whoever_is_alone_is_kept_waiting_less_and_less():
    gather, alone, waited = Gathering(), Arrivals(0, 1), []

    async def run():
        for _ in range(100):
            before = alone.asked
            await gather(alone)
            waited.append(alone.asked > before)

    asyncio.run(run())
    assert [i for i, one in enumerate(waited) if one] == [0, 2, 6, 14, 30, 62, 94]


def test_company_is_noticed_again():
    gather = Gathering()

    async def run():
        for _ in range(8):
            await gather(Arrivals(0, 1))  # the last attempt, the fourth, is followed by seven that are left out
        for _ in range(7):
            await gather(Arrivals(1, 3))
        for _ in range(3):
            arrivals = Arrivals(1, 3)
            await gather(arrivals)
            assert arrivals() == 3

    asyncio.run(run())
