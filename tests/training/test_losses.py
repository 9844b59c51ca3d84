"""Each loss against an independent float64 reference, by finite differences, and against PyTorch."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rmjax.data.packing.rows import fill_rows
from rmjax.data.records.formats.preferences import ranked_edges
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Edge, Tree, packed_spec
from rmjax.serving.services.critic_state import clipped_value
from rmjax.training import losses

RNG = np.random.default_rng(0)
PAIRS = [
    ([Edge(0, 1, margin=0.5, weight=1.0, strength=2.0)], None, 2),
    ([Edge(1, 0, margin=-0.25, weight=3.0, strength=0.5)], None, 2),
    ([Edge(0, 1, target=0.5)], None, 2),
    ([Edge(0, 1, margin=1.0, target=0.8)], None, 2),
]


def make_batch(*comparisons, attributes=1):
    """Packs comparisons of (edges, labels [R, A] or None, R) into the first of two rows, followed by padding."""
    trees = []
    for edges, labels, count in comparisons:
        branches = tuple(np.array([1], np.int32) for _ in range(count))
        trees.append(Tree(np.array([2], np.int32), branches, tuple((k, 0) for k in range(count)), tuple(edges), labels))
    return {k: jnp.asarray(v) for k, v in fill_rows([trees], packed_spec(2, 64, 24, 80, attributes)).items()}


def random_rewards(batch):
    return jnp.asarray(RNG.normal(size=batch["labels"].shape), jnp.float32)


def mean(pair):
    return float(pair[0] / pair[1])


def softplus(x):
    return np.logaddexp(0.0, x)


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("strength", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bradley_terry(margin, strength, smoothing):
    batch = make_batch(*PAIRS)
    rewards = random_rewards(batch)
    total = weights = 0.0
    for i, ([edge], _, _) in enumerate(PAIRS):
        r = np.asarray(rewards, np.float64)[0, 2 * i : 2 * i + 2, 0]
        d = r[edge.winner] - r[edge.loser] - (edge.margin if margin else 0)
        q = edge.target * (1 - smoothing) + (1 - edge.target) * smoothing
        total += edge.weight * (edge.strength if strength else 1) * (q * softplus(-d) + (1 - q) * softplus(d))
        weights += edge.weight
    found = losses.bradley_terry(rewards, batch, margin=margin, strength=strength, label_smoothing=smoothing)
    assert mean(found) == pytest.approx(total / weights, rel=1e-5)


def test_instructgpt_k_wise_loss_weighs_each_comparison_once():
    ranks = [[3, 1, 2, 4], [2, 1]]
    batch = make_batch(*[(ranked_edges(r, False, ReadOptions()), None, len(r)) for r in ranks])
    rewards = random_rewards(batch)
    expected, start = [], 0
    for r in ranks:
        x = np.asarray(rewards, np.float64)[0, start : start + len(r), 0]
        pairs = [(i, j) for i, j in itertools.permutations(range(len(r)), 2) if r[i] < r[j]]
        expected.append(np.mean([softplus(x[j] - x[i]) for i, j in pairs]))
        start += len(r)
    assert mean(losses.bradley_terry(rewards, batch)) == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("ties", ["drop", "half"])
def test_plackett_luce(ties):
    ranks = [[3, 1, 2, 4], [2, 1], [1, 2, 2, 3], [1, 2, 2]]
    batch = make_batch(*[(ranked_edges(r, False, ReadOptions(ties=ties)), None, len(r)) for r in ranks])
    rewards = random_rewards(batch)
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
    assert mean(losses.plackett_luce(rewards, batch)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_plackett_luce_of_two_responses_equals_bradley_terry():
    batch = make_batch(([Edge(0, 1)], None, 2), ([Edge(1, 0, weight=2.0)], None, 2))
    rewards = random_rewards(batch)
    assert mean(losses.plackett_luce(rewards, batch)) == pytest.approx(
        mean(losses.bradley_terry(rewards, batch)), rel=1e-6
    )


def test_regression_is_the_mean_over_present_labels():
    labels = RNG.normal(size=(5, 3)).astype(np.float32)
    labels[0, 1] = labels[2] = np.nan
    batch = make_batch(*[((), row[None], 1) for row in labels], attributes=3)
    rewards = random_rewards(batch)
    error = np.asarray(rewards, np.float64)[0, :5] - labels
    assert mean(losses.regression(rewards, batch)) == pytest.approx(np.nanmean(error**2), rel=1e-5)
    weights, scale = np.array([1.0, 2.0, 0.5]), np.array([2.0, 1.0, 3.0])
    w = np.where(np.isnan(labels), 0, weights)
    expected = np.nansum(w * (error / scale) ** 2) / w.sum()
    found = losses.regression(rewards, batch, attribute_weights=tuple(weights), scale=tuple(scale))
    assert mean(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_process(loss):
    labels = np.array([[1], [0], [np.nan], [0.5], [1]], np.float32)
    batch = make_batch(((), labels, 5))
    rewards = random_rewards(batch)
    r, y = np.asarray(rewards, np.float64)[0, :5, 0], labels[:, 0]
    each = (1 / (1 + np.exp(-r)) - y) ** 2 if loss == "mse" else y * softplus(-r) + (1 - y) * softplus(r)
    assert mean(losses.process(rewards, batch, process_loss=loss)) == pytest.approx(np.nanmean(each), rel=1e-5)


def test_clipped_value():
    v, old, returns = RNG.normal(size=(3, 2, 6))
    mask = RNG.integers(0, 2, (2, 6)).astype(float)
    clipped = np.clip(v, old - 0.2, old + 0.2)
    expected = 0.5 * (np.maximum((v - returns) ** 2, (clipped - returns) ** 2) * mask).sum() / mask.sum()
    found = clipped_value(*map(jnp.float32, (v, old, returns, mask)))
    assert mean(found) == pytest.approx(expected, rel=1e-5)
    with jax.enable_x64(True):
        loss = lambda v: clipped_value(v, *map(jnp.asarray, (old, returns, mask)))[0]
        direction, step = RNG.normal(size=v.shape), 1e-6
        numeric = (loss(v + step * direction) - loss(v - step * direction)) / (2 * step)
        assert float(jnp.vdot(jax.grad(loss)(jnp.asarray(v)), direction)) == pytest.approx(float(numeric), rel=1e-5)


def test_penalties():
    batch = make_batch(*PAIRS)
    rewards = random_rewards(batch)
    r = np.asarray(rewards, np.float64)[0, :8, 0].reshape(4, 2)
    weight = np.array([edge.weight for [edge], _, _ in PAIRS])
    expected = (weight * r.sum(1) ** 2).sum() / weight.sum()
    assert mean(losses.centering(rewards, batch)) == pytest.approx(expected, rel=1e-5)
    assert mean(losses.reward_l2(rewards, batch)) == pytest.approx((r**2).mean(), rel=1e-5)


def test_rewards_minus_margins_never_broadcast():
    """A (B, 1) reward minus a (B,) margin gives a (B, B) loss in some trainers; here each edge has its own margin."""
    batch = make_batch(*[([Edge(0, 1, float(m))], None, 2) for m in range(4)])
    rewards = random_rewards(batch)
    r = np.asarray(rewards, np.float64)[0, :8, 0].reshape(4, 2)
    expected = softplus(-(r[:, 0] - r[:, 1] - np.arange(4))).mean()
    assert mean(losses.bradley_terry(rewards, batch, margin=True)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (losses.bradley_terry, "edge_margin"),
        (losses.plackett_luce, "edge_target"),
        (losses.regression, "labels"),
        (losses.process, "labels"),
    ],
)
def test_an_array_of_another_shape_is_an_error_instead_of_broadcast(loss, name):
    batch = make_batch(*PAIRS)
    rewards = random_rewards(batch)
    batch[name] = batch[name][..., None]
    with pytest.raises(AssertionError, match="equal_shape"):
        loss(rewards, batch)


def test_equal_to_torch_losses():
    """The losses of TRL's RewardTrainer and PRMTrainer and of NeMo-Aligner are these torch calls on logits."""
    torch = pytest.importorskip("torch")
    batch = make_batch(*[([Edge(0, 1, 0.5, strength=2.0)], None, 2)] * 3)
    rewards = random_rewards(batch)
    r = torch.tensor(np.asarray(rewards))[0, :6, 0].reshape(3, 2)
    d, log_sigmoid = r[:, 0] - r[:, 1], torch.nn.functional.logsigmoid
    for options, expected in (
        ({}, -log_sigmoid(d).mean()),
        ({"margin": True}, -log_sigmoid(d - 0.5).mean()),
        ({"strength": True}, (2.0 * -log_sigmoid(d)).mean()),
    ):
        assert mean(losses.bradley_terry(rewards, batch, **options)) == pytest.approx(float(expected), rel=1e-6)
    labels = np.array([[1], [0], [1]], np.float32)
    batch = make_batch(((), labels, 3))
    rewards = random_rewards(batch)
    logit = torch.tensor(np.asarray(rewards))[0, :3, 0]
    logits = torch.stack([torch.zeros(3), logit], -1)  # a two-class head whose logits differ by r
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(labels[:, 0]).long())
    assert mean(losses.process(rewards, batch)) == pytest.approx(float(expected), rel=1e-6)
