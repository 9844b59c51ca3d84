"""REINFORCE with a leave-one-out baseline: an RL loop that needs nothing but the reward server.

    python -m rmjax.serve --model=runs/binary-1 --http_port=8000 --max_length=256
    python experiments/reinforce.py --url=http://127.0.0.1:8000

The model is one of configs/binary.py. Prints the mean reward of each iteration's answers, as the server gives it, and
their mean gold reward, which the loop does not learn from. Two cores beside the server, 8 seconds: in 60 iterations the
reward goes from -0.14 to 5.69, gold from 0.00 to 3.88 of 5 (seed 0).
"""

import argparse
from collections.abc import Iterator

import digit_policy as policy
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmjax.serving import Client

SAMPLES = 8  # of a prompt: each is judged against the mean of the others
REPEATS = 4  # of every prompt in an iteration
LEARNING_RATE = 1e-2
_OPTIMIZER = optax.adam(LEARNING_RATE)


def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """Returns each reward minus the mean of the other samples' of its group, [groups, samples]."""
    others = (rewards.sum(1, keepdims=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


@jax.jit
def update(params, opt_state, prompts, digits, advantages):
    """Takes a step up sum_b A_b log p(answer_b) / B, for answers [B, N] with advantages A [B]."""
    loss = lambda params: -(advantages * policy.log_probs(params, prompts, digits).sum(1)).mean()
    updates, opt_state = _OPTIMIZER.update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state


def reinforce(client: Client, iterations: int, seed: int = 0) -> Iterator[tuple[float, float]]:
    """Yields (mean reward, mean gold reward) of each iteration's answers."""
    key, start = jax.random.split(jax.random.key(seed))
    params = policy.init(start)
    opt_state = _OPTIMIZER.init(params)
    prompts = np.repeat(np.arange(len(policy.PROMPTS)), REPEATS * SAMPLES)
    questions = [policy.PROMPTS[p][0] for p in prompts]
    for i in range(iterations):
        digits = np.asarray(policy.sample(params, jax.random.fold_in(key, i), prompts))
        rewards = client.rewards(policy.texts(digits), prompts=questions)
        advantages = leave_one_out(rewards.reshape(-1, SAMPLES)).ravel()
        params, opt_state = update(params, opt_state, prompts, digits, jnp.asarray(advantages))
        yield float(rewards.mean()), policy.gold(prompts, digits)


def main() -> None:
    """Runs the loop as the flags say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the reward server's HTTP face")
    parser.add_argument("--token", default="", help="its bearer token, where it asks for one")
    parser.add_argument("--iterations", type=int, default=60)
    given = parser.parse_args()
    with Client(given.url, token=given.token) as client:
        for i, (reward, gold) in enumerate(reinforce(client, given.iterations)):
            print(f"iteration {i:3}: reward {reward:7.3f}, gold {gold:6.3f} of {policy.N - 1}", flush=True)


if __name__ == "__main__":
    main()
