"""Each objective against an independent float64 reference, by finite differences, and against the peers."""

import importlib.util
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.data.packing.rows import fill_rows
from rmjax.data.records.parsers import NEMO, ReadOptions, ranked_edges
from rmjax.data.schema import Edge, Tree, packed_spec
from rmjax.serving.services.value_loss import clipped_value
from rmjax.training import objectives

RNG = np.random.default_rng(0)


def batch_of(*comparisons, attributes=1):
    """Packs comparisons of (edges, labels [R, A] or None, R) into one row, with padding behind."""
    trees = []
    for edges, labels, count in comparisons:
        branches = tuple(np.array([1], np.int32) for _ in range(count))
        trees.append(Tree(np.array([2], np.int32), branches, tuple((k, 0) for k in range(count)), tuple(edges), labels))
    return {k: jnp.asarray(v) for k, v in fill_rows([trees], packed_spec(2, 64, 24, 80, attributes)).items()}


def rewards_of(batch):
    return jnp.asarray(RNG.normal(size=batch["labels"].shape), jnp.float32)


def ratio(pair):
    return float(pair[0] / pair[1])


def softplus(x):
    return np.logaddexp(0.0, x)


PAIRS = [([Edge(0, 1, 0.5, 1.0, 2.0)], None, 2), ([Edge(1, 0, -0.25, 3.0, 0.5)], None, 2),
         ([Edge(0, 1, 0.0, 1.0, 1.0, 0.5)], None, 2), ([Edge(0, 1, 1.0, 1.0, 1.0, 0.8)], None, 2)]  # fmt: skip


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("strength", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bradley_terry(margin, strength, smoothing):
    batch = batch_of(*PAIRS)
    rewards = rewards_of(batch)
    total = weights = 0.0
    for i, ([edge], _, _) in enumerate(PAIRS):
        r = np.asarray(rewards, np.float64)[0, 2 * i : 2 * i + 2, 0]
        d = r[edge.winner] - r[edge.loser] - (edge.margin if margin else 0)
        q = edge.target * (1 - smoothing) + (1 - edge.target) * smoothing
        total += edge.weight * (edge.strength if strength else 1) * (q * softplus(-d) + (1 - q) * softplus(d))
        weights += edge.weight
    found = objectives.bradley_terry(rewards, batch, margin=margin, strength=strength, label_smoothing=smoothing)
    assert ratio(found) == pytest.approx(total / weights, rel=1e-5)


def test_instructgpts_k_wise_loss_counts_each_comparison_once():
    ranks = [[3, 1, 2, 4], [2, 1]]
    batch = batch_of(*[(ranked_edges(r, False, ReadOptions()), None, len(r)) for r in ranks])
    rewards = rewards_of(batch)
    expected, start = [], 0
    for r in ranks:
        x = np.asarray(rewards, np.float64)[0, start : start + len(r), 0]
        pairs = [(i, j) for i, j in itertools.permutations(range(len(r)), 2) if r[i] < r[j]]
        expected.append(np.mean([softplus(x[j] - x[i]) for i, j in pairs]))
        start += len(r)
    assert ratio(objectives.bradley_terry(rewards, batch)) == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("ties", ["drop", "half"])
def test_plackett_luce(ties):
    ranks = [[3, 1, 2, 4], [2, 1], [1, 2, 2, 3], [1, 2, 2]]
    batch = batch_of(*[(ranked_edges(r, False, ReadOptions(ties=ties)), None, len(r)) for r in ranks])
    rewards = rewards_of(batch)
    expected, start = [], 0
    for r in ranks:
        x, r = np.asarray(rewards, np.float64)[0, start : start + len(r), 0], np.array(r)
        loss = 0.0
        for i in range(len(r)):
            if (r > r[i]).any() or (ties == "half" and (r == r[i]).sum() > 1):
                left = (r > r[i]) | (np.arange(len(r)) == i) | ((r == r[i]) & (ties == "half"))
                loss += math.log(np.exp(x[left]).sum()) - x[i]
        expected.append(loss)
        start += len(r)
    assert ratio(objectives.plackett_luce(rewards, batch)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_plackett_luce_of_two_is_bradley_terry():
    batch = batch_of(([Edge(0, 1)], None, 2), ([Edge(1, 0, weight=2.0)], None, 2))
    rewards = rewards_of(batch)
    assert ratio(objectives.plackett_luce(rewards, batch)) == pytest.approx(
        ratio(objectives.bradley_terry(rewards, batch)), rel=1e-6
    )


def labelled():
    labels = RNG.normal(size=(5, 3)).astype(np.float32)
    labels[0, 1] = labels[2] = np.nan
    return labels, batch_of(*[((), row[None], 1) for row in labels], attributes=3)


def test_regression_is_the_mean_over_present_labels():
    labels, batch = labelled()
    rewards = rewards_of(batch)
    error = np.asarray(rewards, np.float64)[0, :5] - labels
    assert ratio(objectives.regression(rewards, batch)) == pytest.approx(np.nanmean(error**2), rel=1e-5)
    weights, scale = np.array([1.0, 2.0, 0.5]), np.array([2.0, 1.0, 3.0])
    w = np.where(np.isnan(labels), 0, weights)
    expected = np.nansum(w * (error / scale) ** 2) / w.sum()
    found = objectives.regression(rewards, batch, weights=tuple(weights), scale=tuple(scale))
    assert ratio(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_process(loss):
    labels = np.array([[1], [0], [np.nan], [0.5], [1]], np.float32)
    batch = batch_of(((), labels, 5))
    rewards = rewards_of(batch)
    r, y = np.asarray(rewards, np.float64)[0, :5, 0], labels[:, 0]
    each = (1 / (1 + np.exp(-r)) - y) ** 2 if loss == "mse" else y * softplus(-r) + (1 - y) * softplus(r)
    assert ratio(objectives.process(rewards, batch, loss=loss)) == pytest.approx(np.nanmean(each), rel=1e-5)


def test_clipped_value():
    v, old, returns = RNG.normal(size=(3, 2, 6))
    mask = RNG.integers(0, 2, (2, 6)).astype(float)
    clipped = np.clip(v, old - 0.2, old + 0.2)
    expected = 0.5 * (np.maximum((v - returns) ** 2, (clipped - returns) ** 2) * mask).sum() / mask.sum()
    found = clipped_value(*map(jnp.float32, (v, old, returns, mask)))
    assert ratio(found) == pytest.approx(expected, rel=1e-5)
    with jax.enable_x64(True):
        loss = lambda v: clipped_value(v, *map(jnp.asarray, (old, returns, mask)))[0]
        direction, step = RNG.normal(size=v.shape), 1e-6
        numeric = (loss(v + step * direction) - loss(v - step * direction)) / (2 * step)
        assert float(jnp.vdot(jax.grad(loss)(jnp.asarray(v)), direction)) == pytest.approx(float(numeric), rel=1e-5)


def test_penalties():
    batch = batch_of(*PAIRS)
    rewards = rewards_of(batch)
    r = np.asarray(rewards, np.float64)[0, :8, 0].reshape(4, 2)
    weight = np.array([edge.weight for [edge], _, _ in PAIRS])
    expected = (weight * r.sum(1) ** 2).sum() / weight.sum()
    assert ratio(objectives.centering(rewards, batch)) == pytest.approx(expected, rel=1e-5)
    assert ratio(objectives.reward_l2(rewards, batch)) == pytest.approx((r**2).mean(), rel=1e-5)


def section(**values):
    config = configs.default().objective
    for key, value in values.items():
        setattr(config, key, value)
    return config


K_WISE = (ranked_edges([2, 1, 3, 1], False, ReadOptions(ties="half")), None, 4)


@pytest.mark.parametrize("options", [
    {"name": "bradley_terry", "margin": True, "strength": True, "label_smoothing": 0.1, "centering": 0.3},
    {"name": "plackett_luce", "reward_l2": 0.2},
    {"name": "regression"},
    {"name": "regression+bradley_terry", "weights": (0.5, 2.0)},
    {"name": "process"},
    {"name": "process", "process_loss": "mse"},
])  # fmt: skip
def test_gradients_by_finite_differences(options):
    labels = np.array([[1], [0], [np.nan], [0.5]], np.float32)
    batch = batch_of(*PAIRS, K_WISE, ([Edge(0, 1)], labels[:2], 2), ((), labels, 4))
    objective = objectives.make_objective(section(**options))
    stacked = jax.tree.map(lambda leaf: leaf[None], batch)

    with jax.enable_x64(True):
        batch = {k: jnp.asarray(np.asarray(v, np.float64)) if v.dtype == np.float32 else v for k, v in batch.items()}
        totals = objective.totals(stacked)
        loss = lambda rewards: objective.share(objective(rewards, batch), totals)
        rewards = jnp.asarray(RNG.normal(size=batch["labels"].shape))
        direction = jnp.asarray(RNG.normal(size=rewards.shape))
        step = 1e-5
        numeric = (loss(rewards + step * direction) - loss(rewards - step * direction)) / (2 * step)
        assert float(jnp.vdot(jax.grad(loss)(rewards), direction)) == pytest.approx(float(numeric), rel=1e-5)


def test_a_sum_of_objectives_is_the_weighted_sum_of_their_means():
    labels = np.array([[1.5]], np.float32)
    batch = batch_of(([Edge(0, 1)], None, 2), ((), labels, 1))
    rewards = rewards_of(batch)
    objective = objectives.make_objective(section(name="regression+bradley_terry", weights=(0.5, 2.0)))
    found = objective.values(jax.device_get(objective(rewards, batch)))
    assert found["loss"] == pytest.approx(0.5 * found["loss/regression"] + 2 * found["loss/bradley_terry"], rel=1e-6)
    assert found["loss/regression"] == pytest.approx(ratio(objectives.regression(rewards, batch)), rel=1e-6)
    # What a microbatch adds is its share of the whole step's loss.
    stacked = jax.tree.map(lambda leaf: leaf[None], batch)
    assert float(objective.share(objective(rewards, batch), objective.totals(stacked))) == pytest.approx(found["loss"])


def test_rewards_minus_margins_never_broadcast():
    """A (B, 1) reward less a (B,) margin gives a (B, B) loss in some peers; here each edge has its own margin."""
    batch = batch_of(*[([Edge(0, 1, float(m))], None, 2) for m in range(4)])
    rewards = rewards_of(batch)
    r = np.asarray(rewards, np.float64)[0, :8, 0].reshape(4, 2)
    expected = softplus(-(r[:, 0] - r[:, 1] - np.arange(4))).mean()
    assert ratio(objectives.bradley_terry(rewards, batch, margin=True)) == pytest.approx(expected, rel=1e-5)


def test_the_ranking_attribute_is_chosen():
    nine = NEMO
    assert objectives.make_objective(section(name="regression_bt"), nine).merge.index(1.0) == 4  # as in NeMo-Aligner
    assert objectives.make_objective(section(name="regression_bt", reward_attribute="b"), ("a", "b")).merge == (0, 1)
    with pytest.raises(InputError, match=r"set config.objective.reward_attribute"):
        objectives.make_objective(section(name="bradley_terry"), ("a", "b"))
    with pytest.raises(InputError, match=r"reward_attribute is 'c'; the head has a, b"):
        objectives.make_objective(section(name="bradley_terry", reward_attribute="c"), ("a", "b"))
    with pytest.raises(InputError, match=r"objective.weights has 1 entries"):
        objectives.make_objective(section(name="regression+bradley_terry", weights=(1.0,)))
    with pytest.raises(InputError, match=r"objective.name is 'magic'"):
        objectives.make_objective(section(name="regression+magic"))


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_equal_to_torchs_losses():
    """The peers' losses are these torch calls on logits (TRL's RewardTrainer and PRMTrainer, NeMo-Aligner's)."""
    import torch

    batch = batch_of(*[([Edge(0, 1, 0.5, strength=2.0)], None, 2)] * 3)
    rewards = rewards_of(batch)
    r = torch.tensor(np.asarray(rewards))[0, :6, 0].reshape(3, 2)
    d, log_sigmoid = r[:, 0] - r[:, 1], torch.nn.functional.logsigmoid
    for options, expected in (
        ({}, -log_sigmoid(d).mean()),
        ({"margin": True}, -log_sigmoid(d - 0.5).mean()),
        ({"strength": True}, (2.0 * -log_sigmoid(d)).mean()),
    ):
        assert ratio(objectives.bradley_terry(rewards, batch, **options)) == pytest.approx(float(expected), rel=1e-6)
    labels = np.array([[1], [0], [1]], np.float32)
    batch = batch_of(((), labels, 3))
    rewards = rewards_of(batch)
    logit = torch.tensor(np.asarray(rewards))[0, :3, 0]
    two = torch.stack([torch.zeros(3), logit], -1)  # a two-class head whose logits differ by r
    expected = torch.nn.functional.cross_entropy(two, torch.tensor(labels[:, 0]).long())
    assert ratio(objectives.process(rewards, batch)) == pytest.approx(float(expected), rel=1e-6)
