"""Objectives: what is minimised, as sums that are divided once, after accumulation over microbatches and devices.

Axis letters: B rows, R readouts, E edges, A attributes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from rmjax.core.config import check_choice

# {metric: (sum, weight)}; a metric's value is the ratio. The key `loss` is what is minimised.
Sums = dict[str, tuple[jax.Array, jax.Array]]
Objective = Callable[[jax.Array, dict[str, jax.Array]], Sums]


def make_objective(config: ml_collections.ConfigDict) -> Objective:
    """Returns the objective that `config.objective` names: a function of rewards [B, R, A] and the packed batch."""
    check_choice("objective.name", config.name, ("bradley_terry",))
    return lambda rewards, batch: bradley_terry(rewards, batch, use_margin=config.margin)


def bradley_terry(rewards: jax.Array, batch: dict[str, jax.Array], *, use_margin: bool) -> Sums:
    """-log sigmoid(r_w - r_l - m), summed over edges with their weights.

    r_w and r_l are the rewards of an edge's winner and loser, m its margin (0 unless `use_margin`). Accuracy counts
    r_w > r_l as 1 and a tie as 0.5.

    Args:
      rewards: float32 [B, R, 1].
      batch: packed rows with `readout_group` [B, R] and the edge table [B, E].

    Returns:
      Sums of loss, accuracy, margin (r_w - r_l), chosen_reward_mean and rejected_reward_mean over edges, and of
      reward_mean and reward_square over readouts.

    Source: Bradley & Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), eq. 1; the margin as in Touvron et al. 2023
    (arXiv 2307.09288), eq. 2.
    """
    reward = rewards[..., 0]
    winner = jnp.take_along_axis(reward, batch["edge_winner"], axis=1)
    loser = jnp.take_along_axis(reward, batch["edge_loser"], axis=1)
    weight = batch["edge_weight"]
    # Padding edges compare readout 0 with itself; their weight of 0 takes them out of every sum below.
    difference = winner - loser
    loss = -jax.nn.log_sigmoid(difference - batch["edge_margin"] if use_margin else difference)
    used = batch["readout_group"] > 0
    total, count = jnp.sum(weight), jnp.sum(used, dtype=jnp.float32)
    return {
        "loss": (jnp.sum(weight * loss), total),
        "accuracy": (jnp.sum(weight * (0.5 + 0.5 * jnp.sign(difference))), total),
        "margin": (jnp.sum(weight * difference), total),
        "chosen_reward_mean": (jnp.sum(weight * winner), total),
        "rejected_reward_mean": (jnp.sum(weight * loser), total),
        "reward_mean": (jnp.sum(jnp.where(used, reward, 0.0)), count),
        "reward_square": (jnp.sum(jnp.where(used, jnp.square(reward), 0.0)), count),
    }


def values(sums: Sums) -> dict[str, float]:
    """Divides sums into metrics on the host; `reward_square` becomes `reward_std`."""
    means = {name: float(total) / max(float(weight), 1e-30) for name, (total, weight) in sums.items()}
    square = means.pop("reward_square")
    means["reward_std"] = max(square - means["reward_mean"] ** 2, 0.0) ** 0.5
    return means
