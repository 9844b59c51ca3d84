"""The critic's loss, where both training code and the server can reach it.

Axis letters: B rows, T tokens of a row.
"""

import jax
import jax.numpy as jnp


def clipped_value(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, mask: jax.Array, clip: float = 0.2
) -> tuple[jax.Array, jax.Array]:
    """1/2 max[(v - R)², (clip(v, v_old - e, v_old + e) - R)²] over the tokens of the mask.

    Args:
      values, old_values, returns, mask: float32 [B, T]: the critic's values v now and when the tokens were sampled, the
        returns R, and 1 on response tokens.
      clip: e.

    Returns:
      (sum of losses, sum of the mask).

    Source: Schulman et al. 2017 (arXiv 1707.06347), as in the PPO reference code and NeMo-Aligner.
    """
    clipped = jnp.clip(values, old_values - clip, old_values + clip)
    worst = jnp.maximum(jnp.square(values - returns), jnp.square(clipped - returns))
    return 0.5 * jnp.sum(mask * worst), jnp.sum(mask)
