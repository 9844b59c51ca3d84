"""A small policy for the prompts of the built-in data, trained by ppo_toy.py and reinforce.py with a reward server.

A response is a sequence of distinct digits, as in the training data of configs/binary.py. The gold reward of a response
is known, so reward hacking would be visible: the learned reward would rise without the gold reward.

Axis letters: B responses, N digits of a response, V digits to choose from, H hidden units.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.data.records import synthetic

PROMPTS = (("Count up:", "up"), ("Rising:", "up"), ("Count down:", "down"), ("Falling:", "down"))
N, V, H = synthetic.DIGITS, 10, 128
_MASKED = -1e9  # logit of a digit that was used before


def init(key: jax.Array) -> dict[str, jax.Array]:
    """Returns the parameters of a policy that gives all sequences of distinct digits the same probability."""
    inputs = len(PROMPTS) + N * V
    hidden = jax.random.normal(key, (inputs, H)) / N**0.5  # at most N + 1 inputs are not 0
    return {"hidden": hidden, "bias": jnp.zeros(H), "output": jnp.zeros((H, V))}


def _log_softmax(params: dict[str, jax.Array], prompts: jax.Array, digits: jax.Array) -> jax.Array:
    """Returns the log-probabilities of all digits [B, N, V], given the prompt and the previous digits."""
    causal_mask = jnp.tril(jnp.ones((N, N)), -1)
    previous = jnp.einsum("nm,bmv->bnmv", causal_mask, jax.nn.one_hot(digits, V))
    prompt = jnp.broadcast_to(jax.nn.one_hot(prompts, len(PROMPTS))[:, None], (len(digits), N, len(PROMPTS)))
    inputs = jnp.concatenate([prompt, previous.reshape(len(digits), N, N * V)], axis=-1)
    logits = jax.nn.relu(inputs @ params["hidden"] + params["bias"]) @ params["output"]
    return jax.nn.log_softmax(jnp.where(previous.sum(2) > 0, _MASKED, logits))


def log_probs(params: dict[str, jax.Array], prompts: jax.Array, digits: jax.Array) -> jax.Array:
    """Returns the log-probabilities [B, N] of the digits [B, N] of responses to prompts [B], indices into PROMPTS."""
    return jnp.take_along_axis(_log_softmax(params, prompts, digits), digits[..., None], axis=-1)[..., 0]


@jax.jit
def sample(params: dict[str, jax.Array], key: jax.Array, prompts: jax.Array) -> jax.Array:
    """Returns the digits of a sampled response to each prompt, int32 [B, N]."""
    digits = jnp.zeros((len(prompts), N), jnp.int32)
    for n, step_key in enumerate(jax.random.split(key, N)):
        digits = digits.at[:, n].set(jax.random.categorical(step_key, _log_softmax(params, prompts, digits)[:, n]))
    return digits


def texts(digits: np.ndarray) -> list[str]:
    """Returns responses [B, N] as text in the format of the built-in data."""
    return [" " + "".join(map(str, row)) for row in digits.tolist()]


def gold(prompts: np.ndarray, digits: np.ndarray) -> float:
    """Returns the mean gold reward of responses [B, N]; its maximum is N - 1."""
    return float(np.mean([synthetic.gold(row, PROMPTS[p][1]) for p, row in zip(prompts, digits, strict=True)]))
