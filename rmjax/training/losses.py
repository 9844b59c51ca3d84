"""Loss functions over packed rows, each returned as (sum, weight); the caller divides after accumulation.

Axis letters: B rows, R readouts, E edges, A attributes. `rewards` are float32 [B, R, A]; `batch` holds the arrays of
`rmjax.data.schema.packed_spec`: unused readouts have `readout_group` 0, unused edges weight 0, missing labels NaN. For
a member of a head (`training.members`) it also holds `label_weight` [B, R, 1], a factor of the labels' weights.
`merge` holds A weights that reduce the attributes to the one reward that ranks responses.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]
SumAndWeight = tuple[jax.Array, jax.Array]


def merged_rewards(rewards: jax.Array, batch: Batch, merge: Sequence[float]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the merged reward of each readout [B, R], and those of each edge's winner and loser [B, E]."""
    if len(merge) != rewards.shape[-1]:  # `einsum` would repeat a single attribute, or sum none
        raise ValueError(f"{len(merge)} merge weights for rewards of {rewards.shape[-1]} attributes")
    reward = jnp.einsum("bra,a->br", rewards, jnp.asarray(merge, rewards.dtype), precision=jax.lax.Precision.HIGHEST)
    gather = lambda index: jnp.take_along_axis(reward, batch[index], axis=1)
    return reward, gather("edge_winner"), gather("edge_loser")


def bradley_terry(
    rewards: jax.Array,
    batch: Batch,
    *,
    merge: Sequence[float] = (1.0,),
    margin: bool = False,
    strength: bool = False,
    label_smoothing: float = 0.0,
) -> SumAndWeight:
    """-s [q log sigmoid(d - m) + (1 - q) log sigmoid(-(d - m))] with d = r_w - r_l, the weighted sum over edges.

    r_w and r_l are the rewards of an edge's winner and loser, m its margin (0 unless `margin`), s its strength (1
    unless `strength`), q = p (1 - e) + (1 - p) e for its target p (1, or 0.5 for a tie) and `label_smoothing` e. The
    strength is not part of the returned weight, as in the sources.

    Source: Bradley & Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), eq. 1; margin: Touvron et al. 2023 (arXiv
    2307.09288), eq. 2; strength: scaled Bradley-Terry of Wang et al. 2024 (arXiv 2410.01257), eq. 3; smoothing:
    Mitchell 2023, "A note on DPO with noisy preferences", eq. 3.
    """
    _, winner, loser = merged_rewards(rewards, batch, merge)
    target, weight = batch["edge_target"], batch["edge_weight"]
    chex.assert_equal_shape((winner, loser, target, weight, batch["edge_margin"], batch["edge_strength"]))
    # An unused edge compares readout 0 with itself; its weight of 0 excludes it.
    difference = winner - loser - (batch["edge_margin"] if margin else 0.0)
    target = target * (1 - label_smoothing) + (1 - target) * label_smoothing
    loss = -target * jax.nn.log_sigmoid(difference) - (1 - target) * jax.nn.log_sigmoid(-difference)
    return jnp.sum(weight * loss * (batch["edge_strength"] if strength else 1.0)), jnp.sum(weight)


def plackett_luce(rewards: jax.Array, batch: Batch, *, merge: Sequence[float] = (1.0,)) -> SumAndWeight:
    """sum_i [log(exp r_i + sum_{j in S_i} exp r_j) - r_i] over responses i that beat another, per comparison.

    S_i are the responses that i beats: a ranking is a sequence of choices of the best of the remaining responses. K = 2
    is Bradley-Terry. Ties are excluded from S_i, unless the data has tie edges (target 0.5, data.ties = half): then
    S_i includes the responses tied with i, and the sum is over responses that beat or tie with another (Breslow's
    likelihood for ties). A comparison's weight is the sum of its edge weights; all its edges must be in the row.

    Source: Plackett 1975; Luce 1959; Xia et al. 2008 (ListMLE), section 4.3; ties: Breslow 1974, Biometrics 30.
    """
    reward, _, _ = merged_rewards(rewards, batch, merge)
    weight, winner, loser = batch["edge_weight"], batch["edge_winner"], batch["edge_loser"]
    chex.assert_equal_shape((weight, winner, loser, batch["edge_target"]))
    tied = (batch["edge_target"] == 0.5) & (weight > 0)
    beats = (weight > 0) & ~tied
    rows = jnp.arange(reward.shape[0])[:, None]
    remaining = jnp.zeros((*reward.shape, reward.shape[1]), bool)  # [B, R, R]: j in S_i, or i itself
    remaining = remaining.at[rows, winner, loser].max(beats | tied).at[rows, loser, winner].max(tied)
    chosen = jnp.zeros(reward.shape, bool).at[rows, winner].max(beats | tied).at[rows, loser].max(tied)
    remaining |= jnp.eye(reward.shape[1], dtype=bool)
    loss = jax.nn.logsumexp(jnp.where(remaining, reward[:, None, :], -jnp.inf), axis=-1) - reward
    # The comparison's weight at each of its readouts: summed over the edges of the readout's group.
    group = batch["readout_group"]
    edge_group = jnp.take_along_axis(group, winner, axis=1)
    same_group = (group[:, :, None] == edge_group[:, None, :]).astype(weight.dtype)
    comparison_weight = jnp.einsum("bre,be->br", same_group, weight)
    return jnp.sum(jnp.where(chosen, comparison_weight * loss, 0.0)), jnp.sum(weight)


def regression(
    rewards: jax.Array, batch: Batch, *, attribute_weights: Sequence[float] = (), scale: Sequence[float] = ()
) -> SumAndWeight:
    """w_a ((r_a - y_a) / s_a)², summed over the labels y that are present; the weight is the sum of their w_a.

    `attribute_weights` are w and `scale` s, the labels' standard deviations if standardized; A each, (): 1 each.

    Source: Wang et al. 2023 (HelpSteer, arXiv 2311.09528), section 3; the mean over present labels as in NeMo-Aligner.
    """
    labels = batch["labels"]
    chex.assert_equal_shape((rewards, labels))
    weight = jnp.where(jnp.isnan(labels), 0.0, 1.0) * jnp.asarray(attribute_weights or (1.0,), rewards.dtype)
    weight = weight * batch.get("label_weight", 1.0)
    # Replace NaN before the subtraction: 0 * NaN is NaN, in the gradient too.
    error = (rewards - jnp.where(jnp.isnan(labels), 0.0, labels)) / jnp.asarray(scale or (1.0,), rewards.dtype)
    return jnp.sum(weight * jnp.square(error)), jnp.sum(weight)


def process(rewards: jax.Array, batch: Batch, *, process_loss: str = "cross_entropy") -> SumAndWeight:
    """-[y log sigmoid(r) + (1 - y) log sigmoid(-r)], or (sigmoid(r) - y)² for "mse", summed over the labeled steps.

    `labels` y [B, R, 1] are in 0 to 1. The one logit r equals the difference of the two logits of a two-class head;
    r > 0 predicts a correct step with either loss.

    Source: Lightman et al. 2023 (arXiv 2305.20050), section 2.6; Uesato et al. 2022 (arXiv 2211.14275); the square:
    Brier 1950, Monthly Weather Review 78.
    """
    labels = batch["labels"]
    chex.assert_equal_shape((rewards, labels))
    known = ~jnp.isnan(labels)
    y = jnp.where(known, labels, 0.0)
    if process_loss == "mse":
        each = jnp.square(jax.nn.sigmoid(rewards) - y)
    else:
        each = -y * jax.nn.log_sigmoid(rewards) - (1 - y) * jax.nn.log_sigmoid(-rewards)
    weight = known * jnp.asarray(batch.get("label_weight", 1.0), jnp.float32)
    return jnp.sum(jnp.where(known, weight * each, 0.0)), jnp.sum(weight, dtype=jnp.float32)


def centering(rewards: jax.Array, batch: Batch, *, merge: Sequence[float] = (1.0,)) -> SumAndWeight:
    """(r_w + r_l)², the weighted sum over edges: keeps rewards near 0 (Eisenstein et al., arXiv 2312.09244, eq. 9)."""
    _, winner, loser = merged_rewards(rewards, batch, merge)
    weight = batch["edge_weight"]
    return jnp.sum(weight * jnp.square(winner + loser)), jnp.sum(weight)


def reward_l2(rewards: jax.Array, batch: Batch) -> SumAndWeight:
    """r², summed over used readouts and attributes."""
    used = jnp.broadcast_to(batch["readout_group"][..., None] > 0, rewards.shape)
    return jnp.sum(jnp.where(used, jnp.square(rewards), 0.0)), jnp.sum(used, dtype=jnp.float32)
