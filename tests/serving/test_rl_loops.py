"""The RL loops under experiments/, against servers in this process."""

import contextlib
import importlib
import math

import jax
import numpy as np
import pytest

from rmjax.serving import Client
from tests.conftest import ROOT
from tests.serving.conftest import start_with_critic


@pytest.fixture
def programs(monkeypatch):
    """Returns the function that imports a program of experiments/."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    return importlib.import_module


def test_the_policy_starts_with_every_order_of_different_digits(programs):
    policy = programs("digit_policy")
    params = policy.init(jax.random.key(0))
    prompts = np.arange(64) % len(policy.PROMPTS)
    digits = np.asarray(policy.sample(params, jax.random.key(1), prompts))
    assert all(len(set(row)) == policy.N for row in digits.tolist())
    found = np.asarray(policy.log_probs(params, prompts, digits)).sum(1)
    np.testing.assert_allclose(found, -math.log(math.perm(policy.V, policy.N)), rtol=1e-5)
    up, down = np.arange(policy.N)[None], np.arange(policy.N)[None, ::-1]
    assert policy.texts(down) == [" 543210"]
    assert [policy.gold([0], up), policy.gold([2], up), policy.gold([3], down)] == [5, -5, 5]


def test_advantages_equal_values_computed_by_hand(programs):
    found = programs("reinforce").leave_one_out(np.array([[1.0, 2.0, 6.0]]))
    np.testing.assert_allclose(found, [[-3, -1.5, 4.5]])
    ppo = programs("ppo_toy")
    found = ppo.advantages(np.array([[1.0, 2.0, 4.0]]), np.array([3.0]))
    np.testing.assert_allclose(found, [[1 + ppo.LAMBDA * (2 - ppo.LAMBDA), 2 - ppo.LAMBDA, -1]])


def test_reinforce_raises_the_reward(programs, fakes):
    served = fakes(queue_tokens=1 << 16, queue_size=1024)
    with Client(f"http://127.0.0.1:{served.http_port}") as client:
        rewards = [reward for reward, _ in programs("reinforce").reinforce(client, 15)]
    assert rewards[-1] > rewards[0] + 5  # the fake reward, a sum of bytes, is at most 12 above its mean


def test_ppo_uses_reward_model_and_critic(programs, running, tmp_path):
    ppo = programs("ppo_toy")
    with contextlib.ExitStack() as stack:
        made = start_with_critic(stack, running, tmp_path)
        client = stack.enter_context(Client(f"http://127.0.0.1:{made.http_port}", batch=8, concurrency=1))
        found = list(ppo.ppo(ppo.CriticClient(made.grpc_port), client, running.tokenizer, 2, repeats=2))
        assert np.isfinite(found).all()
        steps = [path.name for path in tmp_path.iterdir() if path.name.isdecimal()]
        assert steps == [str(2 * ppo.CRITIC_STEPS)]
