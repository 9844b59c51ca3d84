"""Objectives: what is minimised, as sums that are divided once a step, whatever microbatches and devices it has.

Axis letters: B rows, R readouts, E edges, A attributes, T tokens.

Peers' variants as options: InstructGPT's K-wise loss is `pairwise` over K-wise data (each comparison's edges weigh
1 / their number); NeMo-Aligner's regular_bt, margin_bt and scaled_bt are `regression_bt`, Bradley-Terry over one of a
head's several attributes, with objective.margin and objective.strength as they say; HelpSteer2-Preference's mixture is
`regression+regression_bt`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rmjax.core.config import check_choice, default
from rmjax.core.errors import InputError

# {metric: (sum, weight)}; a metric's value is the ratio.
Sums = dict[str, tuple[jax.Array, jax.Array]]
Batch = dict[str, jax.Array]
Term = Callable[[jax.Array, Batch], tuple[jax.Array, jax.Array]]


def reward_of(rewards: jax.Array, batch: Batch, merge: Sequence[float]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns each readout's one reward [B, R], and those of each edge's winner and loser [B, E].

    Args:
      rewards: float32 [B, R, A].
      merge: A weights of the attributes.
    """
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
) -> tuple[jax.Array, jax.Array]:
    """-s [q log sigmoid(d - m) + (1 - q) log sigmoid(-(d - m))] with d = r_w - r_l, summed over edges by weight.

    r_w and r_l are the rewards of an edge's winner and loser, m its margin (0 unless `margin`), s its strength (1
    unless `strength`), q = p (1 - e) + (1 - p) e with its target p (1, or 0.5 for a tie) and the smoothing e. The
    weight that the sum is divided by knows no strength, as in the sources.

    Args:
      rewards: float32 [B, R, A].
      batch: packed rows with the edge table [B, E].
      merge: A weights of the attributes in the reward that ranks.

    Returns:
      (sum of losses, sum of weights).

    Source: Bradley & Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), eq. 1; the margin as in Touvron et al. 2023
    (arXiv 2307.09288), eq. 2; strength: scaled Bradley-Terry of Wang et al. 2024 (arXiv 2410.01257), eq. 3; smoothing:
    Mitchell 2023, "A note on DPO with noisy preferences", eq. 3.
    """
    _, winner, loser = reward_of(rewards, batch, merge)
    # Padding edges compare readout 0 with itself; their weight of 0 takes them out.
    difference = winner - loser - (batch["edge_margin"] if margin else 0.0)
    target = batch["edge_target"]
    target = target * (1 - label_smoothing) + (1 - target) * label_smoothing
    loss = -target * jax.nn.log_sigmoid(difference) - (1 - target) * jax.nn.log_sigmoid(-difference)
    weight = batch["edge_weight"]
    return jnp.sum(weight * loss * (batch["edge_strength"] if strength else 1.0)), jnp.sum(weight)


def plackett_luce(rewards: jax.Array, batch: Batch, *, merge: Sequence[float] = (1.0,)) -> tuple[jax.Array, jax.Array]:
    """sum_i [log(exp r_i + sum_{j in S_i} exp r_j) - r_i] over responses i that beat another, per comparison.

    S_i are the responses that i beats: the probability of the ranking as a sequence of choices of the best of what is
    left. K = 2 is Bradley-Terry. Responses tied with i are outside S_i, so a tie says nothing; where the data keeps
    ties (edges with target 0.5, data.ties = half) they are in S_i, and the sum is over responses that beat or tie with
    another: Breslow's likelihood for ties. Each comparison weighs what its edges weigh in all.

    Args:
      rewards: float32 [B, R, A].
      batch: packed rows with the edge table [B, E], complete for each comparison.
      merge: A weights of the attributes in the reward that ranks.

    Returns:
      (sum of losses, sum of weights).

    Source: Plackett 1975; Luce 1959; Xia et al. 2008 (ListMLE), section 4.3; ties: Breslow 1974, Biometrics 30.
    """
    reward, _, _ = reward_of(rewards, batch, merge)
    weight, winner, loser = batch["edge_weight"], batch["edge_winner"], batch["edge_loser"]
    tied = (batch["edge_target"] == 0.5) & (weight > 0)
    beats = (weight > 0) & ~tied
    rows = jnp.arange(reward.shape[0])[:, None]
    left = jnp.zeros((*reward.shape, reward.shape[1]), bool)  # [B, R, R]: who is in S_i
    left = left.at[rows, winner, loser].max(beats | tied).at[rows, loser, winner].max(tied)
    stage = jnp.zeros(reward.shape, bool).at[rows, winner].max(beats | tied).at[rows, loser].max(tied)
    left |= jnp.eye(reward.shape[1], dtype=bool)
    choice = jax.nn.logsumexp(jnp.where(left, reward[:, None, :], -jnp.inf), axis=-1) - reward
    # A comparison's weight, at each of its readouts: the edges of its group.
    group = batch["readout_group"]
    edge_group = jnp.take_along_axis(group, winner, axis=1)
    own = jnp.einsum("bre,be->br", (group[:, :, None] == edge_group[:, None, :]).astype(weight.dtype), weight)
    return jnp.sum(jnp.where(stage, own * choice, 0.0)), jnp.sum(weight)


def regression(
    rewards: jax.Array, batch: Batch, *, weights: Sequence[float] = (1.0,), scale: Sequence[float] = (1.0,)
) -> tuple[jax.Array, jax.Array]:
    """w_a ((r_a - y_a) / s_a)² over the labels y that are present, divided by the sum of their w_a.

    Args:
      rewards: float32 [B, R, A].
      batch: packed rows with `labels` [B, R, A], NaN where missing.
      weights: A weights of the attributes, or one for all.
      scale: s, the same; the labels' standard deviations where targets are standardised.

    Returns:
      (sum of losses, sum of weights).

    Source: Wang et al. 2023 (HelpSteer, arXiv 2311.09528), section 3; the mean over present labels as in NeMo-Aligner.
    """
    labels = batch["labels"]
    weight = jnp.where(jnp.isnan(labels), 0.0, 1.0) * jnp.asarray(weights, rewards.dtype)
    # The label is replaced before it is subtracted: 0 * NaN would still be NaN, in the gradient too.
    error = (rewards - jnp.where(jnp.isnan(labels), 0.0, labels)) / jnp.asarray(scale, rewards.dtype)
    return jnp.sum(weight * jnp.square(error)), jnp.sum(weight)


def process(rewards: jax.Array, batch: Batch, *, loss: str = "cross_entropy") -> tuple[jax.Array, jax.Array]:
    """-[y log sigmoid(r) + (1 - y) log sigmoid(-r)], or (sigmoid(r) - y)², over the steps that are judged.

    One logit r does what two-class heads do with the difference of theirs; above 0 it says right, with either loss.

    Args:
      rewards: float32 [B, R, 1], read at each step's end.
      batch: packed rows with `labels` y [B, R, 1] in 0 to 1, NaN where not judged.
      loss: `cross_entropy` or `mse`.

    Returns:
      (sum of losses, number of judged steps).

    Source: Lightman et al. 2023 (arXiv 2305.20050), section 2.6; Uesato et al. 2022 (arXiv 2211.14275); the square:
    Brier 1950, Monthly Weather Review 78.
    """
    labels = batch["labels"]
    known = ~jnp.isnan(labels)
    y = jnp.where(known, labels, 0.0)
    if loss == "mse":
        each = jnp.square(jax.nn.sigmoid(rewards) - y)
    else:
        each = -y * jax.nn.log_sigmoid(rewards) - (1 - y) * jax.nn.log_sigmoid(-rewards)
    return jnp.sum(jnp.where(known, each, 0.0)), jnp.sum(known, dtype=jnp.float32)


def centering(rewards: jax.Array, batch: Batch, *, merge: Sequence[float] = (1.0,)) -> tuple[jax.Array, jax.Array]:
    """(r_w + r_l)² over edges by weight: keeps rewards near zero (Eisenstein et al. 2023, arXiv 2312.09244, eq. 9)."""
    _, winner, loser = reward_of(rewards, batch, merge)
    weight = batch["edge_weight"]
    return jnp.sum(weight * jnp.square(winner + loser)), jnp.sum(weight)


def reward_l2(rewards: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """r² over readouts and attributes."""
    used = jnp.broadcast_to(batch["readout_group"][..., None] > 0, rewards.shape)
    return jnp.sum(jnp.where(used, jnp.square(rewards), 0.0)), jnp.sum(used, dtype=jnp.float32)


def statistics(rewards: jax.Array, batch: Batch, merge: Sequence[float]) -> Sums:
    """Returns sums of accuracy (ties of rewards count 0.5), margin and the rewards' means over edges and readouts."""
    reward, winner, loser = reward_of(rewards, batch, merge)
    weight = batch["edge_weight"]
    total = jnp.sum(weight)
    decided = jnp.where(batch["edge_target"] == 0.5, 0.0, weight)  # a tie of the data has no right answer
    right = 0.5 + 0.5 * jnp.sign(winner - loser)
    used = batch["readout_group"] > 0
    count = jnp.sum(used, dtype=jnp.float32)
    return {
        "accuracy": (jnp.sum(decided * right), jnp.sum(decided)),
        "margin": (jnp.sum(weight * (winner - loser)), total),
        "chosen_reward_mean": (jnp.sum(weight * winner), total),
        "rejected_reward_mean": (jnp.sum(weight * loser), total),
        "reward_mean": (jnp.sum(jnp.where(used, reward, 0.0)), count),
        "reward_square": (jnp.sum(jnp.where(used, jnp.square(reward), 0.0)), count),
    }


@dataclasses.dataclass(frozen=True)
class Objective:
    """A weighted sum of terms, each the mean over what it is about.

    Attributes:
      terms: {name: (weight, function)}.
      merge: A weights that make one reward of a head's attributes, for ranking and statistics.
      needs: what of the data each term cannot do without: {name: "edges" or "labels"}.
    """

    terms: dict[str, tuple[float, Term]]
    merge: tuple[float, ...]
    needs: dict[str, str]

    def __call__(self, rewards: jax.Array, batch: Batch) -> Sums:
        """Returns the sums `loss/TERM` of each term, and those of `statistics`."""
        losses = {f"loss/{name}": function(rewards, batch) for name, (_, function) in self.terms.items()}
        return losses | statistics(rewards, batch, self.merge)

    def totals(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns what each term's sum over a whole step [M, B, ...] is divided by."""
        # Weights are of the data alone, so any rewards give them.
        nothing = jnp.zeros(batch["labels"].shape, jnp.float32)
        weights = lambda rewards, rows: {name: term(rewards, rows)[1] for name, (_, term) in self.terms.items()}
        found = jax.vmap(weights)(nothing, batch)
        return {name: jnp.maximum(jnp.sum(each), 1e-30) for name, each in found.items()}

    def share(self, sums: Sums, totals: dict[str, jax.Array]) -> jax.Array:
        """Returns a microbatch's share of the step's loss."""
        return sum(weight * sums[f"loss/{name}"][0] / totals[name] for name, (weight, _) in self.terms.items())

    def values(self, sums: Sums) -> dict[str, float]:
        """Divides sums into metrics on the host; what nothing in the batch is about is left out."""
        means = {name: float(total) / float(weight) for name, (total, weight) in sums.items() if float(weight) > 0}
        losses = {name: means.get(f"loss/{name}", 0.0) for name in self.terms}
        if len(losses) == 1:
            means.pop(f"loss/{next(iter(losses))}", None)
        square = means.pop("reward_square")
        means["reward_std"] = max(square - means["reward_mean"] ** 2, 0.0) ** 0.5
        return {"loss": sum(self.terms[name][0] * value for name, value in losses.items())} | means


# What each term needs of the data.
_NEEDS = {"bradley_terry": "edges", "pairwise": "edges", "regression_bt": "edges", "plackett_luce": "edges",
          "regression": "labels", "process": "labels"}  # fmt: skip
# Which terms use which options.
_PAIRWISE = ("bradley_terry", "pairwise", "regression_bt")
_USERS = {
    _PAIRWISE: ("margin", "strength", "label_smoothing"),
    (*_PAIRWISE, "plackett_luce"): ("centering",),
    ("regression",): ("attribute_weights", "standardize"),
    ("process",): ("process_loss",),
}


def make_objective(
    config: ml_collections.ConfigDict, attributes: Sequence[str] = ("reward",), scale: Sequence[float] = ()
) -> Objective:
    """Returns the objective that `config.objective` names for a head of these attributes.

    Args:
      scale: standard deviations by which the regression divides its errors; empty for none.

    Raises:
      InputError: an unknown name, or an option that does not fit.
    """
    names = config.name.split("+")
    for name in names:
        check_choice("objective.name", name, tuple(_NEEDS))
    shares = [float(share) for share in config.weights] or [1.0] * len(names)
    if len(shares) != len(names):
        raise InputError(f"config.objective.weights has {len(shares)} entries; {config.name!r} has {len(names)} terms")
    merge = _merge(config, attributes, names)
    defaults = default().objective
    for users, options in _USERS.items():
        set_here = [key for key in options if config[key] != defaults[key]]
        if set_here and not set(users) & set(names):
            raise InputError(
                f"config.objective.{set_here[0]} is {config[set_here[0]]!r}, but {config.name!r} does not "
                f"use it; {', '.join(users)} would"
            )
    if config.attribute_weights and len(config.attribute_weights) != len(attributes):
        raise InputError(
            f"config.objective.attribute_weights has {len(config.attribute_weights)} entries; the head "
            f"has the attributes {', '.join(attributes)}"
        )
    pairwise = functools.partial(
        bradley_terry,
        merge=merge,
        margin=config.margin,
        strength=config.strength,
        label_smoothing=config.label_smoothing,
    )
    functions = {
        "bradley_terry": pairwise,
        "pairwise": pairwise,
        "regression_bt": pairwise,
        "plackett_luce": functools.partial(plackett_luce, merge=merge),
        "regression": functools.partial(
            regression, weights=tuple(config.attribute_weights) or (1.0,), scale=tuple(scale) or (1.0,)
        ),
        "process": functools.partial(process, loss=config.process_loss),
    }
    terms = {name: (share, functions[name]) for name, share in zip(names, shares, strict=True)}
    if config.centering:
        terms["centering"] = (config.centering, functools.partial(centering, merge=merge))
    if config.reward_l2:
        terms["reward_l2"] = (config.reward_l2, reward_l2)
    return Objective(terms, merge, {name: _NEEDS[name] for name in names})


def _merge(config: ml_collections.ConfigDict, attributes: Sequence[str], names: Sequence[str]) -> tuple[float, ...]:
    wanted = config.reward_attribute or ("helpfulness" if "helpfulness" in attributes else "")
    if not wanted:
        if len(attributes) > 1 and any(_NEEDS[name] == "edges" for name in names):
            raise InputError(
                f"the head has the attributes {', '.join(attributes)}; say by which responses are ranked: "
                "set config.objective.reward_attribute"
            )
        return tuple(np.full(len(attributes), 1 / len(attributes)).tolist())
    if wanted not in attributes:
        raise InputError(f"config.objective.reward_attribute is {wanted!r}; the head has {', '.join(attributes)}")
    return tuple(float(name == wanted) for name in attributes)
