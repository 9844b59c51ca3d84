"""The train step: one compiled program for any number of microbatches, whose mean gradient does not depend on it."""

import dataclasses

import chex
import jax
import numpy as np
import optax
import pytest

from rmjax.core.mesh import make_mesh
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel
from rmjax.models.lora import LoraConfig
from rmjax.training.objectives import make_objective
from rmjax.training.step import Trainer
from tests.training.test_losses import make_batch
from tests.training.test_objectives import section

MICROBATCHES = 4
DECODER = DecoderConfig(50, 32, 64, 2, 4, 2, 8, 1e-5, 1e4, None, False, False, 512, 0.2)


def make_step(used):
    """Returns a batch [M, B, ...] whose first `used` microbatches hold the same comparisons, and the rest padding."""
    labels = np.array([[0.5], [1.5]], np.float32)
    full, empty = make_batch(((), labels, 2), ((), labels + 1, 2)), make_batch()
    return jax.tree.map(lambda a, b: np.stack([a] * used + [b] * (MICROBATCHES - used)), full, empty)


@pytest.mark.parametrize("short_length", [0, 32])
def test_one_program_serves_any_number_of_microbatches(monkeypatch, short_length):
    chex.clear_trace_counter()
    monkeypatch.setattr(Trainer, "_step", chex.assert_max_traces(Trainer._step, n=1))
    mesh, schedule = make_mesh(devices=jax.devices()[:1]), optax.constant_schedule(0.1)
    model = RewardModel(DECODER, HeadConfig(init=1.0, merge=(1.0,)))
    trainer = Trainer(model, make_objective(section(name="regression")), optax.sgd(schedule), schedule, 1.0, mesh)
    norms = []
    with jax.set_mesh(mesh):
        step = trainer.compile_step(short_length)
        for used in range(1, MICROBATCHES + 1):
            state = trainer.init(model.init(jax.random.key(0)))
            full = used // 2 if short_length else used
            state, outputs = step(state, make_step(used), np.array([full, used], np.int32))
            norms.append(float(outputs["grad_norm"]))
            assert int(state["step"]) == 1
    assert norms[0] > 0
    np.testing.assert_allclose(norms, norms[0], rtol=1e-5)


def flops(pattern, lora=None):
    """Returns the floating-point operations of a train step of one microbatch, in units of its forward pass."""
    mesh, schedule = make_mesh(devices=jax.devices()[:1]), optax.constant_schedule(0.1)
    decoder = dataclasses.replace(DECODER, hidden_size=128, intermediate_size=512)  # matrix products prevail
    model = RewardModel(decoder, HeadConfig(init=1.0, merge=(1.0,)), scan_layers=False, lora=lora)
    objective = make_objective(section(name="regression"))
    trainer = Trainer(model, objective, optax.sgd(schedule), schedule, 1.0, mesh, pattern)
    batch = jax.tree.map(lambda leaf: leaf[:1], make_step(1))
    with jax.set_mesh(mesh):
        state, count = trainer.init(model.init(jax.random.key(0))), np.ones(2, np.int32)
        step = trainer.compile_step(0).lower(state, batch, count)
        forward = trainer.compile_evaluation().lower(trainer.params(state), batch, count)
        return tuple(program.compile().cost_analysis()["flops"] for program in (step, forward))


def test_only_what_is_trained_is_computed_backward():
    """The backward pass of a matrix product is two products: of frozen matrices one, and of none below the head."""
    step, forward = flops("")
    assert 2.7 < step / forward < 3.7  # updates and recomputation included
    step, forward = flops("^head/")
    assert step / forward < 1.1
    step, forward = flops("^head/|lora_", LoraConfig(2, 4.0))
    assert 1.9 < step / forward < 2.4
