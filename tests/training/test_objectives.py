"""Objectives: the registry of terms, their weighted sum and its gradients, the reward head, and unfit options."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.data.records.formats.preferences import ranked_edges
from rmjax.data.records.formats.single import NEMO
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Edge
from rmjax.models.architecture import HeadConfig
from rmjax.training import losses, objectives
from rmjax.training.objectives import LABELS, TERMS, Term, make_objective, merge_weights
from tests.training.test_losses import PAIRS, RNG, make_batch, mean, random_rewards

K_WISE = (ranked_edges([2, 1, 3, 1], False, ReadOptions(ties="half")), None, 4)


def section(**values):
    config = configs.default().objective
    for key, value in values.items():
        setattr(config, key, value)
    return config


@pytest.mark.parametrize(
    "options",
    [
        {"name": "bradley_terry", "margin": True, "strength": True, "label_smoothing": 0.1, "centering": 0.3},
        {"name": "plackett_luce", "reward_l2": 0.2},
        {"name": "regression"},
        {"name": "regression+bradley_terry", "weights": (0.5, 2.0)},
        {"name": "process"},
        {"name": "process", "process_loss": "mse"},
    ],
)
def test_gradients_by_finite_differences(options):
    labels = np.array([[1], [0], [np.nan], [0.5]], np.float32)
    batch = make_batch(*PAIRS, K_WISE, ([Edge(0, 1)], labels[:2], 2), ((), labels, 4))
    objective = make_objective(section(**options))
    stacked = jax.tree.map(lambda leaf: leaf[None], batch)

    with jax.enable_x64(True):
        batch = {k: jnp.asarray(np.asarray(v, np.float64)) if v.dtype == np.float32 else v for k, v in batch.items()}
        total_weights = objective.total_weights(stacked)
        loss = lambda rewards: objective.loss_share(objective(rewards, batch), total_weights)
        rewards = jnp.asarray(RNG.normal(size=batch["labels"].shape))
        direction = jnp.asarray(RNG.normal(size=rewards.shape))
        step = 1e-5
        numeric = (loss(rewards + step * direction) - loss(rewards - step * direction)) / (2 * step)
        assert float(jnp.vdot(jax.grad(loss)(rewards), direction)) == pytest.approx(float(numeric), rel=1e-5)


def test_a_sum_of_objectives_is_the_weighted_sum_of_their_means():
    labels = np.array([[1.5]], np.float32)
    batch = make_batch(([Edge(0, 1)], None, 2), ((), labels, 1))
    rewards = random_rewards(batch)
    objective = make_objective(section(name="regression+bradley_terry", weights=(0.5, 2.0)))
    found = objective.metrics(jax.device_get(objective(rewards, batch)))
    assert found["loss"] == pytest.approx(0.5 * found["loss/regression"] + 2 * found["loss/bradley_terry"], rel=1e-6)
    assert found["loss/regression"] == pytest.approx(mean(losses.regression(rewards, batch)), rel=1e-6)
    # A microbatch's share is of the whole step's loss.
    stacked = jax.tree.map(lambda leaf: leaf[None], batch)
    share = objective.loss_share(objective(rewards, batch), objective.total_weights(stacked))
    assert float(share) == pytest.approx(found["loss"])


def test_terms_that_share_a_loss_are_equal():
    batch = make_batch(*PAIRS, K_WISE)
    rewards = random_rewards(batch)
    options = {"margin": True, "strength": True, "label_smoothing": 0.1}
    sums = [make_objective(section(name=name, **options))(rewards, batch) for name in ("bradley_terry", "pairwise")]
    chex.assert_trees_all_equal(sums[0]["loss/bradley_terry"], sums[1]["loss/pairwise"])


def test_a_new_objective_is_one_function_and_one_record(monkeypatch):
    def absolute_error(rewards, batch, *, scale):
        known = ~jnp.isnan(batch["labels"])
        error = jnp.abs(rewards - jnp.where(known, batch["labels"], 0.0)) / scale[0]
        return jnp.sum(jnp.where(known, error, 0.0)), jnp.sum(known, dtype=jnp.float32)

    monkeypatch.setitem(TERMS, "absolute", Term("absolute", absolute_error, LABELS, ("scale",), ceiling="mae_floor"))
    batch = make_batch(((), np.array([[1.5], [np.nan]], np.float32), 2))
    rewards = random_rewards(batch)
    objective = make_objective(section(name="absolute"), HeadConfig(merge=(1.0,), scale=(2.0,)))
    found = objective.metrics(jax.device_get(objective(rewards, batch)))
    assert found["loss"] == pytest.approx(abs(float(rewards[0, 0, 0]) - 1.5) / 2, rel=1e-6)
    assert (objective.ceiling, objective.step_metrics) == ("mae_floor", False)


def test_what_terms_imply_for_validation():
    implied = {name: make_objective(section(name=name)) for name in (*TERMS, "bradley_terry+regression")}
    assert {name for name, objective in implied.items() if objective.step_metrics} == {"process"}
    floor = {name for name, objective in implied.items() if objective.ceiling == "mse_floor"}
    assert floor == {"regression", "bradley_terry+regression"}
    assert {objective.ceiling for objective in implied.values()} == {"mse_floor", "accuracy_ceiling"}


def test_the_ranking_attribute_is_chosen():
    assert merge_weights(section(name="regression_bt"), NEMO).index(1.0) == 4  # as in NeMo-Aligner
    assert merge_weights(section(name="regression_bt", reward_attribute="b"), ("a", "b")) == (0, 1)
    assert merge_weights(section(name="regression"), ("a", "b")) == (0.5, 0.5)
    with pytest.raises(InputError, match=r"set config.objective.reward_attribute"):
        merge_weights(section(name="bradley_terry"), ("a", "b"))
    with pytest.raises(InputError, match=r"reward_attribute is 'c'; the head has a, b"):
        merge_weights(section(name="bradley_terry", reward_attribute="c"), ("a", "b"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "regression+bradley_terry", "weights": (1.0,)}, r"objective.weights has 1 entry; .* has 2 terms"),
        ({"name": "regression+magic"}, r"objective.name is 'magic'"),
        (
            {"name": "regression", "attribute_weights": (1.0, 2.0)},
            r"attribute_weights has 2 entries; the head has 1 attribute: reward",
        ),
        ({"name": "process", "margin": True}, r"objective.margin is True, but objective 'process' does not use it"),
        ({"name": "regression", "centering": 0.1}, r"set config.objective.name to bradley_terry or pairwise or"),
        ({"name": "plackett_luce", "process_loss": "mse"}, r"objective.process_loss is 'mse', .* to process$"),
    ],
)
def test_unfit_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        objectives.make_objective(section(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "bradley_tery"}, r"objective\.name is 'bradley_tery'; choose one of bradley_terry, "),
        ({"name": "regression+bradley_terry", "weights": (1.0,)}, r"objective\.weights has 1 entry"),
        ({"name": "bradley_terry", "standardize": True}, r"objective\.standardize is True, but objective"),
        ({"name": "regression", "attributes": ("a", "b", "a")}, r"objective\.attributes holds 'a' twice"),
        ({"name": "regression_bt", "attributes": ("a", "b")}, r"set config\.objective\.reward_attribute"),
        ({"name": "bradley_terry", "reward_attribute": "a"}, r"reward_attribute is 'a'; the head has reward"),
        (
            {"name": "regression", "attributes": ("a", "b"), "attribute_weights": (1.0,)},
            r"attribute_weights has 1 entry; the head has 2 attributes: a, b",
        ),
    ],
)
def test_options_are_checked_without_data(options, message):
    with pytest.raises(InputError, match=message):
        objectives.check(section(**options))


def test_options_that_depend_on_the_data_pass_the_check_without_data():
    objectives.check(section(name="regression+regression_bt", reward_attribute="a", attribute_weights=(1.0, 2.0)))


def test_every_option_of_the_configuration_is_used():
    """Options are used by terms, by penalties, or for all objectives alike."""
    used = {option for term in TERMS.values() for option in term.arguments + term.options}
    everywhere = {"name", "weights", "reward_l2", "reward_attribute", "attributes", "member_weights"}
    assert used - {"merge", "scale"} | everywhere == set(configs.default().objective.keys())
    assert {field.name for field in dataclasses.fields(HeadConfig)} >= {"merge", "scale"}
