"""Our Bradley-Terry loss against TRL's own RewardTrainer.compute_loss, on the same rewards.

    python -m pip install -e '.[bench]' && python experiments/check_trl.py

TRL's method is called as it is, on a model that returns given logits: plain, with margins, and with centering.
"""

import collections
import types

import jax.numpy as jnp
import numpy as np
import torch
import trl

from rmjax.core import config as configs
from rmjax.data.packing.rows import fill_rows
from rmjax.data.schema import Edge, Tree, packed_spec
from rmjax.training.objectives import make_objective

PAIRS = 50


def theirs(rewards: np.ndarray, margins: np.ndarray | None, coefficient: float | None) -> float:
    """Returns the loss of TRL's method for rewards [PAIRS, 2] (better, worse)."""
    logits = torch.tensor(np.concatenate([rewards[:, 0], rewards[:, 1]]))[:, None]
    accelerator = types.SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = types.SimpleNamespace(
        model=types.SimpleNamespace(training=False),
        accelerator=accelerator,
        _total_train_tokens=0,
        _metrics={"eval": collections.defaultdict(list)},
        _tp_size=1,
        args=types.SimpleNamespace(center_rewards_coefficient=coefficient),
    )
    inputs = {"attention_mask": torch.ones(2 * PAIRS, 1)}
    if margins is not None:
        inputs["margin"] = torch.tensor(margins)
    model = lambda **_: types.SimpleNamespace(logits=logits)
    return float(trl.RewardTrainer.compute_loss(trainer, model, inputs))


def ours(rewards: np.ndarray, margins: np.ndarray | None, coefficient: float | None) -> float:
    """Returns our loss for the same."""
    config = configs.default().objective
    config.margin, config.centering = margins is not None, coefficient or 0.0
    one = np.array([1], np.int32)
    edges = [Edge(0, 1, 0.0 if margins is None else float(margins[i])) for i in range(PAIRS)]
    trees = [Tree(one, (one, one), ((0, 0), (1, 0)), (edge,)) for edge in edges]
    batch = fill_rows([trees], packed_spec(1, 3 * PAIRS, 2 * PAIRS, PAIRS, 1))
    objective = make_objective(config)
    sums = objective(jnp.asarray(rewards.reshape(1, -1, 1)), {k: jnp.asarray(v) for k, v in batch.items()})
    return objective.metrics(sums)["loss"]


def main() -> None:
    """Compares and prints."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(0, 3, (PAIRS, 2)).astype(np.float32)
    margins = rng.uniform(0, 2, PAIRS).astype(np.float32)
    print(f"trl {trl.__version__}, {PAIRS} pairs")
    for name, arguments in {"plain": (None, None), "margin": (margins, None), "centering": (None, 0.01)}.items():
        their, our = theirs(rewards, *arguments), ours(rewards, *arguments)
        print(f"{name}: TRL {their:.7f}, rmjax {our:.7f}, difference {abs(their - our):.1e}")
        np.testing.assert_allclose(our, their, rtol=1e-5)


if __name__ == "__main__":
    main()
