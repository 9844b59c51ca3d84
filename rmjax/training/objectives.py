"""Training objectives: one record per loss term, and their weighted sum.

A new objective costs a loss function in `rmjax.training.losses` and a record in `TERMS`. Variants of other trainers are
options: InstructGPT's K-wise loss is `pairwise` over K-wise data (a comparison's edges weigh 1 / their number each);
NeMo-Aligner's regular_bt, margin_bt and scaled_bt are `regression_bt` (Bradley-Terry over one of several attributes)
with `objective.margin` or `objective.strength`; HelpSteer2-Preference's mixture is `regression+regression_bt`.

Axis letters: M microbatches, B rows, R readouts, A attributes. Functions of `config` take `config.objective`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rmjax.core.config import Config, default
from rmjax.core.config_checks import check_choice
from rmjax.core.errors import InputError
from rmjax.core.text import count_of
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.metrics.ranking import ranking_accuracy_sums
from rmjax.models.architecture import HeadConfig
from rmjax.training import losses
from rmjax.training.losses import Batch, SumAndWeight, merged_rewards

Sums = dict[str, SumAndWeight]  # of each metric, whose value is sum / weight
_ONE_REWARD = HeadConfig(merge=(1.0,))


@dataclasses.dataclass(frozen=True)
class Supervision:
    """A kind of label that a loss needs."""

    description: str  # of one such label, for error messages
    present: Callable[[TokenizedDataset], np.ndarray]  # returns which comparisons have one, bool [n]


def _has_label(dataset: TokenizedDataset) -> np.ndarray:
    comparison = np.repeat(np.arange(len(dataset)), dataset.readout_counts)
    return np.bincount(comparison, ~np.isnan(dataset.labels).all(1), minlength=len(dataset)) > 0


PREFERENCES = Supervision("preference", lambda dataset: dataset.edge_counts > 0)
LABELS = Supervision("label of the head's attributes", _has_label)


@dataclasses.dataclass(frozen=True)
class Term:
    """A loss that `objective.name` can select, and everything that depends on it elsewhere."""

    name: str  # in `objective.name` and in the metric `loss/NAME`
    loss: Callable[..., SumAndWeight]
    needs: Supervision
    arguments: tuple[str, ...]  # keyword arguments of `loss`: keys of `config.objective`, or the head's merge and scale
    options: tuple[str, ...] = ()  # further keys of `config.objective` that only such a term uses
    head_from_data: bool = False  # by default the head has the data's attributes instead of the one `reward`
    soft_labels: bool = True  # edge targets other than 1 and 0.5 (a tie) are supported
    step_metrics: bool = False  # labels are of steps: validation computes step metrics instead of attribute metrics
    ceiling: str = ""  # validation metric of the best reachable value in the data; empty: accuracy_ceiling


_PAIRWISE = Term(
    "pairwise", losses.bradley_terry, PREFERENCES, ("merge", "margin", "strength", "label_smoothing"), ("centering",)
)
TERMS = {
    term.name: term
    for term in (
        dataclasses.replace(_PAIRWISE, name="bradley_terry"),
        _PAIRWISE,
        dataclasses.replace(_PAIRWISE, name="regression_bt", head_from_data=True),
        Term("plackett_luce", losses.plackett_luce, PREFERENCES, ("merge",), ("centering",), soft_labels=False),
        Term(
            "regression",
            losses.regression,
            LABELS,
            ("attribute_weights", "scale"),
            ("standardize",),
            head_from_data=True,
            ceiling="mse_floor",
        ),
        Term("process", losses.process, LABELS, ("process_loss",), head_from_data=True, step_metrics=True),
    )
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """A weighted sum of losses, each a mean over its own weights; `losses` holds the terms' and the penalties'."""

    terms: tuple[Term, ...]
    losses: Mapping[str, tuple[float, Callable[[jax.Array, Batch], SumAndWeight]]]  # {name: (weight, loss)}
    merge: tuple[float, ...]  # A weights that reduce the attributes to the one reward that ranks responses

    @property
    def step_metrics(self) -> bool:
        """Whether a term has `step_metrics`."""
        return any(term.step_metrics for term in self.terms)

    @property
    def ceiling(self) -> str:
        """The `ceiling` of the first term that has one, else accuracy_ceiling."""
        return next((term.ceiling for term in self.terms if term.ceiling), "accuracy_ceiling")

    def __call__(self, rewards: jax.Array, batch: Batch) -> Sums:
        """Returns the sums `loss/NAME` of each loss, and those of `statistics`; rewards are float32 [B, R, A]."""
        sums = {f"loss/{name}": loss(rewards, batch) for name, (_, loss) in self.losses.items()}
        return sums | statistics(rewards, batch, self.merge)

    def total_weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the sum of each loss's weights over all microbatches of a step [M, B, ...]."""
        rewards = jnp.zeros(batch["labels"].shape, jnp.float32)  # weights depend on the data alone
        weights = lambda rewards, rows: {name: loss(rewards, rows)[1] for name, (_, loss) in self.losses.items()}
        found = jax.vmap(weights)(rewards, batch)
        return {name: jnp.maximum(jnp.sum(each), 1e-30) for name, each in found.items()}

    def loss_share(self, sums: Sums, total_weights: dict[str, jax.Array]) -> jax.Array:
        """Returns a microbatch's share of the step's loss []; the shares of a step add up to its loss."""
        shares = (weight * sums[f"loss/{name}"][0] / total_weights[name] for name, (weight, _) in self.losses.items())
        return jnp.asarray(sum(shares))

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Divides sums into metrics on the host; a metric with weight 0 is omitted."""
        means = {name: float(total) / float(weight) for name, (total, weight) in sums.items() if float(weight) > 0}
        parts = {name: means.get(f"loss/{name}", 0.0) for name in self.losses}
        if len(parts) == 1:
            means.pop(f"loss/{next(iter(parts))}", None)
        square = means.pop("reward_square")
        means["reward_std"] = max(square - means["reward_mean"] ** 2, 0.0) ** 0.5
        return {"loss": sum(self.losses[name][0] * value for name, value in parts.items())} | means

    def check_data(self, split: str, dataset: TokenizedDataset) -> None:
        """Raises InputError if labels that a term needs are missing, or labels that it does not support are present."""
        targets = np.unique(dataset.edges["target"])
        soft = targets[~np.isin(targets, (0.5, 1))]
        labeled = np.zeros(len(dataset), bool)
        for term in self.terms:
            labeled |= (present := term.needs.present(dataset))
            if not present.any():
                raise InputError(
                    f"config.data.{split}: no record has a {term.needs.description}, which objective {term.name!r} "
                    f"needs; the head has {', '.join(dataset.attributes)}; if the data has them (first record: "
                    f"{dataset.where(0)}), set config.data.format",
                    page="docs/troubleshooting.md#the-data-has-no-labels-for-the-objective",
                )
            if len(soft) and not term.soft_labels:
                raise InputError(
                    f"config.data.{split}: a preference has probability {soft[0]:g}, and objective {term.name!r} does "
                    "not support soft labels; use bradley_terry"
                )
        if not labeled.all():
            needs = dict.fromkeys(f"no {term.needs.description}" for term in self.terms)
            names = "+".join(term.name for term in self.terms)
            record = dataset.where(int(np.argmin(labeled)))
            raise InputError(f"{record}: the record has {' and '.join(needs)}; objective {names!r} needs it")


def statistics(rewards: jax.Array, batch: Batch, merge: Sequence[float]) -> Sums:
    """Returns sums of accuracy and margin over edges, and of means and squares of the rewards over readouts."""
    reward, winner, loser = merged_rewards(rewards, batch, merge)
    weight = batch["edge_weight"]
    total = jnp.sum(weight)
    used = batch["readout_group"] > 0
    count = jnp.sum(used, dtype=jnp.float32)
    return {
        "accuracy": ranking_accuracy_sums(winner - loser, weight, batch["edge_target"]),
        "margin": (jnp.sum(weight * (winner - loser)), total),
        "chosen_reward_mean": (jnp.sum(weight * winner), total),
        "rejected_reward_mean": (jnp.sum(weight * loser), total),
        "reward_mean": (jnp.sum(jnp.where(used, reward, 0.0)), count),
        "reward_square": (jnp.sum(jnp.where(used, jnp.square(reward), 0.0)), count),
    }


def select_terms(config: Config) -> tuple[Term, ...]:
    """Returns the terms that the objective names; raises InputError for unknown names and unused options."""
    names = config.name.split("+")
    for name in names:
        check_choice("objective.name", name, tuple(TERMS))
    terms = tuple(TERMS[name] for name in names)
    uses = lambda term, key: key in term.arguments + term.options
    for key, value in default().objective.items():
        users = [term.name for term in TERMS.values() if uses(term, key)]
        if users and config[key] != value and not any(uses(term, key) for term in terms):
            raise InputError(
                f"config.objective.{key} is {config[key]!r}, but objective {config.name!r} does not use it; remove it, "
                f"or set config.objective.name to {' or '.join(users)}"
            )
    return terms


def check(config: Config) -> None:
    """Raises InputError for options that do not fit together, as far as the data is not needed to tell."""
    terms = select_terms(config)
    _term_weights(config, terms)
    attributes = tuple(config.attributes) or (() if any(term.head_from_data for term in terms) else ("reward",))
    if twice := {name for name in attributes if attributes.count(name) > 1}:
        raise InputError(f"config.objective.attributes holds {min(twice)!r} twice; remove one")
    if attributes:
        make_objective(config, HeadConfig(attributes, merge=merge_weights(config, attributes)))


def make_head(config: Config, dataset: TokenizedDataset) -> HeadConfig:
    """Returns the reward head for training data; raises InputError for options that do not fit it."""
    from_data = any(term.head_from_data for term in select_terms(config))
    attributes = tuple(config.attributes) or (dataset.attributes if from_data else ()) or ("reward",)
    head = HeadConfig(attributes, merge=merge_weights(config, attributes))
    if not config.standardize:
        return head
    labels = dataset.with_attributes(attributes).labels.astype(np.float64)
    counts = np.count_nonzero(~np.isnan(labels), axis=0)
    if not counts.all():
        found = f"only of {', '.join(dataset.attributes)}" if dataset.attributes else "it has no labels"
        raise InputError(
            f"config.data.train: no record has a label of {attributes[int(counts.argmin())]!r}, which "
            f"config.objective.standardize needs, {found}: set config.objective.attributes or config.data.format"
        )
    scale, shift = np.nanstd(labels, axis=0), np.nanmean(labels, axis=0)
    if not (scale > 0).all():
        raise InputError(
            f"config.objective.standardize: all training labels of {attributes[int(np.argmin(scale > 0))]!r} are "
            "equal; remove the attribute from config.objective.attributes"
        )
    return dataclasses.replace(head, scale=tuple(scale.tolist()), shift=tuple(shift.tolist()))


def merge_weights(config: Config, attributes: Sequence[str]) -> tuple[float, ...]:
    """Returns A weights: 1 for the attribute that ranks responses, or 1 / A each if no term needs preferences.

    Raises InputError if `reward_attribute` is unknown, or empty where a term needs it.
    """
    ranking = config.reward_attribute or ("helpfulness" if "helpfulness" in attributes else "")
    if ranking and ranking not in attributes:
        raise InputError(f"config.objective.reward_attribute is {ranking!r}; the head has {', '.join(attributes)}")
    if ranking:
        return tuple(float(name == ranking) for name in attributes)
    if len(attributes) > 1 and any(term.needs is PREFERENCES for term in select_terms(config)):
        raise InputError(
            f"the head has the attributes {', '.join(attributes)}, and preferences need one of them as the reward: "
            "set config.objective.reward_attribute"
        )
    return tuple(np.full(len(attributes), 1 / len(attributes)).tolist())


def make_objective(config: Config, head: HeadConfig = _ONE_REWARD) -> Objective:
    """Returns the objective for a head from `make_head`; raises InputError for options that do not fit it."""
    terms, attributes = select_terms(config), head.attributes
    weights = _term_weights(config, terms)
    if config.attribute_weights and len(config.attribute_weights) != len(attributes):
        raise InputError(
            "config.objective.attribute_weights has "
            f"{count_of(len(config.attribute_weights), 'entry', 'entries')}; the head has "
            f"{count_of(len(attributes), 'attribute')}: {', '.join(attributes)}"
        )
    merge = head.merge_weights
    values = {**config, "merge": merge, "scale": head.scale}
    weighted = {}
    for term, weight in zip(terms, weights, strict=True):
        weighted[term.name] = weight, functools.partial(term.loss, **{name: values[name] for name in term.arguments})
    if config.centering:
        weighted["centering"] = config.centering, functools.partial(losses.centering, merge=merge)
    if config.reward_l2:
        weighted["reward_l2"] = config.reward_l2, functools.partial(losses.reward_l2)
    return Objective(terms, weighted, merge)


def _term_weights(config: Config, terms: Sequence[Term]) -> list[float]:
    weights = [float(weight) for weight in config.weights] or [1.0] * len(terms)
    if len(weights) != len(terms):
        raise InputError(
            f"config.objective.weights has {count_of(len(weights), 'entry', 'entries')}; {config.name!r} has "
            f"{count_of(len(terms), 'term')}"
        )
    return weights
