"""Comparison of the Bradley-Terry loss of rmjax with TRL's RewardTrainer.compute_loss on the same rewards.

    python -m pip install -e '.[bench]' && python experiments/check_trl.py

TRL's method is called unmodified, with a model that returns given logits: plain, with margins, and with centering.
"""

import argparse
import collections
import types

import jax.numpy as jnp
import numpy as np

from rmjax.core import config as configs
from rmjax.data.packing.rows import fill_rows
from rmjax.data.schema import Edge, Tree, packed_spec
from rmjax.training.objectives import make_objective

PAIRS = 50


def trl_loss(rewards: np.ndarray, margins: np.ndarray | None, coefficient: float | None) -> float:
    """Returns TRL's loss of rewards [PAIRS, 2] (chosen, rejected), with margins [PAIRS] and centering coefficient."""
    import torch
    import trl

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


def rmjax_loss(rewards: np.ndarray, margins: np.ndarray | None, coefficient: float | None) -> float:
    """Returns rmjax's loss; the arguments are those of `trl_loss`."""
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
    """Prints the losses and their differences; raises AssertionError if one exceeds 1e-5, relative."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    import trl

    rng = np.random.default_rng(0)
    rewards = rng.normal(0, 3, (PAIRS, 2)).astype(np.float32)
    margins = rng.uniform(0, 2, PAIRS).astype(np.float32)
    print(f"trl {trl.__version__}, {PAIRS} pairs")
    for name, arguments in {"plain": (None, None), "margin": (margins, None), "centering": (None, 0.01)}.items():
        expected, found = trl_loss(rewards, *arguments), rmjax_loss(rewards, *arguments)
        print(f"{name}: TRL {expected:.7f}, rmjax {found:.7f}, difference {abs(expected - found):.1e}")
        np.testing.assert_allclose(found, expected, rtol=1e-5)


if __name__ == "__main__":
    main()
