import asyncio
import concurrent.futures

import numpy as np
import pytest

from rmjax.serving import AsyncClient, Client, ServerError
from rmjax.serving.client import _seconds
from rmjax.serving.security import Security
from tests.serving.test_faults import hold, until, waiting


def url(running):
    return f"http://127.0.0.1:{running.http_port}"


def total(text):
    return float(sum(text.encode()))


def test_texts_messages_and_prompts(fakes):
    running = fakes()
    with Client(url(running)) as client:
        texts = [f"text {i}" for i in range(150)]  # three requests
        assert client.rewards(texts).tolist() == [total(text) for text in texts]
        assert client.rewards([]).shape == (0,)
        chat = [{"role": "user", "content": "ab"}]
        assert client.rewards([[*chat, {"role": "assistant", "content": "c"}]]).tolist() == [total("abc")]
        # The EOS of the fake tokenizer is a byte 1; it renders messages by concatenating them.
        assert client.rewards(["c", "d"], prompts=["ab", "ab"]).tolist() == [total("abc") + 1, total("abd") + 1]
        assert client.reward_function([chat], ["c"], labels=[1]) == [total("abc")]
        assert client.reward_function([chat], [[{"role": "assistant", "content": "c"}]]) == [total("abc")]
        with pytest.warns(UserWarning, match="1 of 1 conversations were longer than the model's maximum"):
            assert client.rewards(["a" * 300], truncate=True).tolist() == [total("a" * 256)]
        with pytest.raises(ServerError, match=r"400: .*300 tokens; at most 256"):
            client.rewards(["a" * 300])
        with pytest.raises(TypeError, match="a prompt is a string"):
            client.rewards([chat], prompts=["a"])
    with Client(url(running), "other") as client, pytest.raises(ServerError, match="404: unknown model 'other'"):
        client.rewards(["a"])


def test_concurrent_calls_of_one_event_loop(fakes):
    running = fakes()

    async def body():
        async with AsyncClient(url(running), batch=3, concurrency=4) as client:
            found = await asyncio.gather(*(client.rewards([f"{i} {j}" for j in range(10)]) for i in range(8)))
        np.testing.assert_array_equal(found, [[total(f"{i} {j}") for j in range(10)] for i in range(8)])

    asyncio.run(body())


def test_overloaded_requests_are_retried(fakes):
    running = fakes(queue_size=4)
    with concurrent.futures.ThreadPoolExecutor() as pool, Client(url(running), batch=2, timeout=60) as client:
        held = hold(running, pool)
        texts = [f"text {i}" for i in range(20)]
        rewards = pool.submit(client.rewards, texts)
        until(lambda: running.metric("refused_total", model="reward_model", reason="Overloaded"))
        assert waiting(running) <= 4
        running.fake.gate.set()
        assert rewards.result().tolist() == [total(text) for text in texts]
        held.result()


def test_retries_end_at_the_timeout(fakes):
    running = fakes()
    running.stop()
    with (
        Client(url(running), timeout=0.3) as client,
        pytest.raises(ServerError, match=r"within 0.3 seconds; .*Connect"),
    ):
        client.rewards(["a"])


def test_bearer_token(fakes):
    running = fakes(security=Security(token="0123456789abcdef"))
    with Client(url(running), token="0123456789abcdef") as client:
        assert client.rewards(["a"]).tolist() == [97]
    with Client(url(running)) as client, pytest.raises(ServerError, match="401: the bearer token"):
        client.rewards(["a"])


def test_retry_after_with_a_date_is_ignored():
    assert _seconds("3") == 3
    assert _seconds("Wed, 21 Oct 2026 07:28:00 GMT") == _seconds("") == 0
