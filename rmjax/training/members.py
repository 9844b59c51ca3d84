"""The training loss of a head of several members, each with its own weights of the comparisons.

Axis letters: K members, B rows, R readouts, E edges, A attributes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.core.config import Config
from rmjax.training.losses import Batch
from rmjax.training.objectives import Objective, Sums, statistics

# P(weight <= n) of a Poisson variable with mean 1, n = 0 to 11; beyond it float32 numbers do not reach.
_POISSON = np.cumsum(np.exp(-1.0) / np.cumprod([1.0, *range(1, 12)]))


@dataclasses.dataclass(frozen=True)
class Members:
    """Data weights of the members of a head: `kind` is a value of `config.objective.member_weights`."""

    count: int  # K
    kind: str
    seed: int

    @classmethod
    def from_config(cls, config: Config) -> "Members | None":
        """Returns the members of a run; None if its head has one."""
        if (count := config.model.head_members) == 1:
            return None
        return cls(count, config.objective.member_weights, config.train.seed)

    def weights(self, comparison: jax.Array) -> jax.Array:
        """Returns the weights float32 [K, ...] of comparisons by their indices in the dataset, int32 [...].

        Exponential weights are the Bayesian bootstrap, up to their sum; Poisson weights count how often a comparison is
        drawn in a bootstrap of a large data set. Both have mean 1. They depend on seed, member and comparison alone: a
        comparison has the same weight in every epoch, row and batch, and after a resume.

        Source: Rubin 1981, Annals of Statistics 9; Oza & Russell 2001, "Online bagging and boosting".
        """
        if self.kind == "equal":
            return jnp.ones((self.count, *comparison.shape), jnp.float32)
        key = jax.random.key(self.seed, impl="threefry2x32")  # the same numbers on every device

        def draw(member: jax.Array, index: jax.Array) -> jax.Array:
            return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, member), index))

        members, flat = jnp.arange(self.count), comparison.reshape(-1)
        uniform = jax.vmap(lambda member: jax.vmap(lambda index: draw(member, index))(flat))(members)
        if self.kind == "poisson":
            counts = jnp.searchsorted(jnp.asarray(_POISSON, jnp.float32), uniform, side="right")
            found = counts.astype(jnp.float32)
        else:
            found = -jnp.log1p(-uniform)
        return found.reshape(self.count, *comparison.shape)

    def sums(self, objective: Objective, rewards: jax.Array, batch: Batch) -> Sums:
        """Returns the sums of `objective`, whose losses are the mean over members of their weighted losses.

        mean_k sum_i w_ki L_i(r_k) / sum_i v_i over labels i with weights v, member weights w_ki = v_i times the weight
        of the comparison: in expectation over the weights, the mean of the members' plain losses. The metrics are those
        of the mean reward.

        Args:
          rewards: of the members, float32 [B, R, K, A].
        """
        weight = self.weights(batch["readout_comparison"])  # [K, B, R]

        def member_losses(rewards: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
            edge = jnp.take_along_axis(weight, batch["edge_winner"], axis=1)
            rows = batch | {"edge_weight": batch["edge_weight"] * edge, "label_weight": weight[..., None]}
            return {name: loss(rewards, rows)[0] for name, (_, loss) in objective.losses.items()}

        losses = jax.vmap(member_losses)(jnp.moveaxis(rewards, 2, 0), weight)
        mean = rewards.mean(axis=2)
        plain = {name: loss(mean, batch)[1] for name, (_, loss) in objective.losses.items()}
        found = {f"loss/{name}": (losses[name].mean(), plain[name]) for name in plain}
        return found | statistics(mean, batch, objective.merge)
