"""REINFORCE with a leave-one-out baseline (RLOO) and a reward server.

    python -m rmjax.serve --model=runs/binary-1 --http_port=8000 --max_length=256
    python experiments/reinforce.py --url=http://127.0.0.1:8000

The reward model is one of configs/binary.py. Prints the mean reward of each iteration's responses, and their mean gold
reward, which is not used for training. On two cores, 60 iterations take 8 seconds: the mean reward rises from -0.14 to
5.69, the gold reward from 0.00 to 3.88 of 5 (seed 0).
"""

import argparse
from collections.abc import Iterator

import digit_policy as policy
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rmjax.serving import Client

SAMPLES = 8  # responses per group; the baseline of each is the mean reward of the others
REPEATS = 4  # groups per prompt and iteration
LEARNING_RATE = 1e-2
OPTIMIZER = optax.adam(LEARNING_RATE)


def leave_one_out(rewards: np.ndarray) -> np.ndarray:
    """Returns rewards [groups, samples] minus the mean reward of the other samples of the group."""
    others = (rewards.sum(1, keepdims=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


@jax.jit
def update(params, opt_state, prompts, digits, advantages):
    """Takes a gradient ascent step on sum_b A_b log p(response_b) / B, of responses [B, N] with advantages A [B]."""
    loss = lambda params: -(advantages * policy.log_probs(params, prompts, digits).sum(1)).mean()
    updates, opt_state = OPTIMIZER.update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, updates), opt_state


def reinforce(client: Client, iterations: int, seed: int = 0) -> Iterator[tuple[float, float]]:
    """Yields (mean reward, mean gold reward) of each iteration's responses."""
    key, start = jax.random.split(jax.random.key(seed))
    params = policy.init(start)
    opt_state = OPTIMIZER.init(params)
    prompts = np.repeat(np.arange(len(policy.PROMPTS)), REPEATS * SAMPLES)
    prompt_texts = [policy.PROMPTS[p][0] for p in prompts]
    for i in range(iterations):
        digits = np.asarray(policy.sample(params, jax.random.fold_in(key, i), prompts))
        rewards = client.rewards(policy.texts(digits), prompts=prompt_texts)
        advantages = leave_one_out(rewards.reshape(-1, SAMPLES)).ravel()
        params, opt_state = update(params, opt_state, prompts, digits, jnp.asarray(advantages))
        yield float(rewards.mean()), policy.gold(prompts, digits)


def main() -> None:
    """Trains the policy and prints the rewards of each iteration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="URL of the reward server's HTTP port")
    parser.add_argument("--token", default="", help="bearer token, if the server requires one")
    parser.add_argument("--iterations", type=int, default=60, help="policy updates")
    given = parser.parse_args()
    with Client(given.url, token=given.token) as client:
        for i, (reward, gold) in enumerate(reinforce(client, given.iterations)):
            print(f"iteration {i:3}: reward {reward:7.3f}, gold {gold:6.3f} of {policy.N - 1}", flush=True)


if __name__ == "__main__":
    main()
