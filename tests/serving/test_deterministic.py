"""Deterministic serving: rewards do not depend, bit for bit, on what else is asked."""

import concurrent.futures
import contextlib

import numpy as np
import pytest

from rmjax.evaluation.scoring import Scorer
from rmjax.serving import Client
from rmjax.serving.engine.queue import Engine
from rmjax.serving.services.reward import RewardService
from tests.serving.conftest import start

_LONGEST = 200


@pytest.fixture(scope="module")
def server(tiny_scorer):
    """A deterministic server of the tiny model."""
    tiny, tokenizer = tiny_scorer
    scorer = Scorer(tiny.model, tiny.params, tiny._mesh, _LONGEST, rows=2, deterministic=True)

    def load(metrics):
        engine = Engine(
            scorer.score, scorer.warm_up, max_length=_LONGEST, batch_tokens=400, queue_size=1000, metrics=metrics
        )
        return RewardService(engine, tokenizer, vocab_size=len(tokenizer), attributes=("reward",))

    with contextlib.ExitStack() as stack:
        yield start(stack, {"reward_model": load})


def test_shuffled_concurrent_requests(server):
    rng = np.random.default_rng(0)
    letters = lambda count: "".join(rng.choice(list("abc "), size=count))
    prompt = letters(60)
    texts = [letters(rng.integers(1, _LONGEST)) for _ in range(30)] + [prompt + letters(n) for n in range(1, 31)]
    with (
        Client(f"http://127.0.0.1:{server.http_port}", batch=7) as http,
        Client(f"grpc://127.0.0.1:{server.grpc_port}", batch=5) as grpc,
    ):
        alone = np.array([http.rewards([text])[0] for text in texts])
        orders = [rng.permutation(len(texts)) for _ in range(8)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            clients = [http, grpc] * 4
            found = list(pool.map(lambda i: clients[i].rewards([texts[j] for j in orders[i]]), range(8)))
    for order, rewards in zip(orders, found, strict=True):
        assert rewards.tobytes() == alone[order].tobytes()
    assert len(set(alone.tolist())) > 50
    batches = server.metric("batches_total", model="reward_model")
    assert batches < len(texts) * 9  # requests did share batches
