"""A tiny policy for the built-in prompts, which ppo_toy.py and reinforce.py train against a reward server.

It answers with different digits, one after the other: a reward model of configs/binary.py has seen no others. So the
gold reward of an answer is known too, and shows whether the learned reward is earned or only exploited.

Axis letters: B answers, N digits of an answer, P prompts, V digits to choose from, H hidden.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.data.records import synthetic

PROMPTS = (("Count up:", "up"), ("Rising:", "up"), ("Count down:", "down"), ("Falling:", "down"))
N, V, H = synthetic.DIGITS, 10, 128
_NEVER = -1e9  # the logit of a digit that was said already


def init(key: jax.Array) -> dict[str, jax.Array]:
    """Returns the parameters of a policy that takes every order of digits with the same probability."""
    inputs = len(PROMPTS) + N * V
    hidden = jax.random.normal(key, (inputs, H)) / N**0.5  # of the inputs, N + 1 at most are not 0
    return {"hidden": hidden, "bias": jnp.zeros(H), "output": jnp.zeros((H, V))}


def _log_softmax(params: dict[str, jax.Array], prompts: jax.Array, digits: jax.Array) -> jax.Array:
    """Returns the log-probability of every choice [B, N, V], given the prompt and the digits before."""
    before = jnp.tril(jnp.ones((N, N)), -1)
    said = jnp.einsum("nm,bmv->bnmv", before, jax.nn.one_hot(digits, V))
    asked = jnp.broadcast_to(jax.nn.one_hot(prompts, len(PROMPTS))[:, None], (len(digits), N, len(PROMPTS)))
    inputs = jnp.concatenate([asked, said.reshape(len(digits), N, N * V)], axis=-1)
    logits = jax.nn.relu(inputs @ params["hidden"] + params["bias"]) @ params["output"]
    return jax.nn.log_softmax(jnp.where(said.sum(2) > 0, _NEVER, logits))


def log_probs(params: dict[str, jax.Array], prompts: jax.Array, digits: jax.Array) -> jax.Array:
    """Returns the log-probability of each digit [B, N] of answers [B, N] to prompts [B], indices into PROMPTS."""
    return jnp.take_along_axis(_log_softmax(params, prompts, digits), digits[..., None], axis=-1)[..., 0]


@jax.jit
def sample(params: dict[str, jax.Array], key: jax.Array, prompts: jax.Array) -> jax.Array:
    """Returns an answer to each prompt, int32 [B, N]."""
    digits = jnp.zeros((len(prompts), N), jnp.int32)
    for n, one in enumerate(jax.random.split(key, N)):
        digits = digits.at[:, n].set(jax.random.categorical(one, _log_softmax(params, prompts, digits)[:, n]))
    return digits


def texts(digits: np.ndarray) -> list[str]:
    """Returns answers [B, N] as the built-in data writes them."""
    return [" " + "".join(map(str, row)) for row in digits.tolist()]


def gold(prompts: np.ndarray, digits: np.ndarray) -> float:
    """Returns the mean gold reward of answers [B, N]; N - 1 is the highest."""
    return float(np.mean([synthetic.gold(row, PROMPTS[p][1]) for p, row in zip(prompts, digits, strict=True)]))
