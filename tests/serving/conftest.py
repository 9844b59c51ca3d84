"""Servers in a thread of the test process, of a tiny random model or of a fake model."""

import asyncio
import contextlib
import dataclasses
import functools
import threading
import types

import grpc
import httpx2
import jax
import numpy as np
import pytest

from rmjax.core.mesh import make_mesh
from rmjax.data.tokens.readouts import Readout
from rmjax.data.tokens.tokenizer import Encoded, Tokenizer
from rmjax.evaluation.scoring import Scorer
from rmjax.models import artifact
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel
from rmjax.models.sharding import state_shardings
from rmjax.serving.app import Server
from rmjax.serving.engine.offload import DeviceMemory
from rmjax.serving.engine.queue import Engine
from rmjax.serving.registry import ModelRegistry
from rmjax.serving.services.critic import critic_loaders
from rmjax.serving.services.critic_state import Critic
from rmjax.serving.services.inputs import InputReader
from rmjax.serving.services.reward import RewardService

MAX_LENGTH, QUEUE = 64, 8


class Loop:
    """An event loop in a thread; `call` runs a coroutine in it and returns its result."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="session")
def tiny_scorer():
    tokenizer = Tokenizer.load("")
    decoder = DecoderConfig(len(tokenizer), 32, 64, 2, 4, 2, 8, 1e-5, 1e4, None, False, False, 512, 0.2)
    model, mesh = RewardModel(decoder, HeadConfig(init=1.0)), make_mesh()
    with jax.set_mesh(mesh):
        return Scorer(model, model.init(jax.random.key(0)), mesh, MAX_LENGTH, rows=1), tokenizer


@pytest.fixture(scope="session")
def make_artifact(tiny_scorer, tmp_path_factory):
    """Writes an artifact with a number of heads, and random parameters of a seed."""
    scorer, tokenizer = tiny_scorer

    def write(members, seed=0):
        model = dataclasses.replace(scorer.model, head=dataclasses.replace(scorer.model.head, members=members))
        path = tmp_path_factory.mktemp("models") / "artifact"
        path.mkdir()
        tokenizer.save(path)
        metadata = {"max_length": 64, "strings": "joined"}
        artifact.write(path, model, model.init(jax.random.key(seed)), tokenizer.base.pad_token_id, metadata)
        return path

    return write


def start(stack, loaders, *, warm=True, security=None, paths=None, host="127.0.0.1"):
    """Starts a server of `loaders` ({name: metrics -> model}) on free ports; `stack` stops it."""
    loop = Loop()
    stack.callback(loop.close)

    async def make():
        server = Server(ModelRegistry(loaders, paths), host, 0, 0, security)
        await server.start()
        return server

    server = loop.call(make())
    stopped = []

    def stop():
        if not stopped:
            stopped.append(loop.call(server.stop()))

    stack.callback(stop)
    if warm:
        loop.call(server.warm_up())
    http = httpx2.Client(base_url=f"http://127.0.0.1:{server.http.port}", timeout=30, trust_env=False)
    channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc.port}")
    stack.callback(channel.close)
    stack.callback(http.close)
    return types.SimpleNamespace(
        server=server,
        call=loop.call,
        loop=loop.loop,
        http=http,
        channel=channel,
        stop=stop,
        http_port=server.http.port,
        grpc_port=server.grpc.port,
        registry=server.registry,
        metric=lambda name, **labels: server.registry.metrics.registry.get_sample_value(f"rmjax_{name}", labels),
    )


def load_tiny(scorer, tokenizer, memory, metrics):
    on_device = memory.resident(memory.register(scorer, "params", metrics))
    engine = Engine(
        on_device(scorer.score),
        on_device(scorer.warm_up),
        max_length=MAX_LENGTH,
        batch_tokens=64,
        queue_size=QUEUE,
        metrics=metrics,
    )
    return RewardService(engine, tokenizer, vocab_size=len(tokenizer), attributes=("reward",))


def make_critic(scorer, directory, mesh=None, **options):
    """Returns a newly initialized critic of the tiny model, with its checkpoints in `directory`."""
    mesh = mesh or make_mesh()
    with jax.set_mesh(mesh):
        params = scorer.model.init(jax.random.key(0))
        params = jax.device_put(params, state_shardings(mesh, params))
    given = {"row_length": MAX_LENGTH, "rows": 1, "learning_rate": 1e-2, "directory": directory} | options
    return Critic(scorer.model, params, mesh, **given)


def start_with_critic(stack, running, directory, memory=None, tokenizer=None):
    """Starts a server of the tiny model and of a critic combined with it, which share `memory`.

    Args:
      tokenizer: of the reward model, if another than the critic's.
    """

    def load(metrics):
        critic = make_critic(running.scorer, directory, memory=memory, metrics=metrics)
        return critic, InputReader(running.tokenizer, len(running.tokenizer), MAX_LENGTH)

    loaders = {
        "reward_model": functools.partial(
            load_tiny, running.scorer, tokenizer or running.tokenizer, memory or DeviceMemory()
        )
    }
    loaders |= critic_loaders(load, lambda: made.registry.acquire("reward_model"))
    made = start(stack, loaders)
    return made


class Fake:
    """A tokenizer and model of bytes: the reward is the sum of a text's bytes, NaN if it contains a 0.

    Attributes:
      scored: every scored sequence, as bytes.
      gate: while it is not set, scoring waits.
      began: set when a batch is being scored.
    """

    bos_prefix, pad_and_eos, readout_place = "", (), Readout()

    def __init__(self, **options):
        self.options = {"max_length": 256, "batch_tokens": 1024, "queue_size": 64, "queue_tokens": 1 << 14} | options
        self.scored, self.gate, self.began = [], threading.Event(), threading.Event()
        self.gate.set()

    def score(self, trees):
        whole = [[np.concatenate([tree.prefix, branch]) for branch in tree.branches] for tree in trees]
        self.scored += [bytes(sequence.tolist()) for tree in whole for sequence in tree]
        self.began.set()
        assert self.gate.wait(30)
        sums = [np.array([[sequence.sum()] for sequence in tree], np.float32) for tree in whole]
        return [
            np.where([[0 in s] for s in tree], np.nan, one).astype(np.float32)
            for tree, one in zip(whole, sums, strict=True)
        ]

    def encode(self, texts, add_eos):
        strings = [
            text + "\x01" * add_eos if isinstance(text, str) else "".join(m["content"] for m in text) for text in texts
        ]
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in strings]

    def encode_checked(self, texts, add_eos):
        return [Encoded(tokens) for tokens in self.encode(texts, add_eos)]

    def load(self, metrics):
        engine = Engine(self.score, lambda: None, metrics=metrics, **self.options)
        return RewardService(engine, self, vocab_size=256, attributes=("reward",))


@pytest.fixture
def fakes():
    """Starts servers of fake models: `fakes(**options)` returns one, with its model as attribute `fake`."""
    with contextlib.ExitStack() as stack:

        def make(security=None, **options):
            fake = Fake(**options)
            running = start(stack, {"reward_model": fake.load}, security=security)
            running.fake = fake
            stack.callback(fake.gate.set)
            return running

        yield make


@pytest.fixture(scope="module")
def running(tiny_scorer):
    """A server of the tiny model, with its scorer, tokenizer and loader."""
    scorer, tokenizer = tiny_scorer
    load = functools.partial(load_tiny, scorer, tokenizer, DeviceMemory())
    with contextlib.ExitStack() as stack:
        made = start(stack, {"reward_model": load})
        made.scorer, made.tokenizer, made.load = scorer, tokenizer, load
        yield made
