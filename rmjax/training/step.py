"""The train state and the one jitted step over it, on whatever mesh is in force."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rmjax.core.mesh import ROWS, replicated
from rmjax.data.schema import PER_TOKEN
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.sharding import state_shardings
from rmjax.training.objectives import Objective, Sums

State = dict[str, Any]  # step: int32 [], params, opt_state
Batch = dict[str, jax.Array]  # packed rows, stacked: [M, B, ...]


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What a step computes: model, objective, optimizer, and the mesh it runs on."""

    model: RewardModel
    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    grad_clip: float
    mesh: Mesh

    def init(self, params: Params) -> State:
        """Returns the state before the first step."""
        return {"step": jnp.zeros((), jnp.int32), "params": params, "opt_state": self.optimizer.init(params)}

    def abstract_state(self) -> State:
        """Returns shapes, dtypes and shardings of the whole state."""
        state = jax.eval_shape(lambda: self.init(self.model.init(jax.random.key(0))))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            state_shardings(self.mesh, state),
        )

    def compile_step(self, short_length: int) -> Callable[[State, Batch, jax.Array], tuple[State, dict[str, Any]]]:
        """Returns `step(state, batch, microbatches) -> (state, report)`; the given state is donated.

        `microbatches` [2] says which of the M stacked microbatches hold comparisons: those before the first are
        computed whole, those from there to the second cut to `short_length` tokens. One program serves any numbers.
        `report` holds the objective's sums, `grad_norm` (before clipping) and `learning_rate`.
        """
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())
        return jax.jit(
            functools.partial(self._step, short_length, shardings["params"]),
            donate_argnums=0,
            in_shardings=(shardings, None, None),
            out_shardings=(shardings, replicated(self.mesh)),
        )

    def compile_evaluation(self) -> Callable[[Params, Batch, jax.Array], tuple[Sums, jax.Array]]:
        """Returns `evaluate(params, batch, microbatches)`: the objective's sums, and the rewards [M, B, R, A]."""

        def evaluate(params: Params, batch: Batch, microbatches: jax.Array) -> tuple[Sums, jax.Array]:
            def one(i: Any, carry: tuple[Sums, jax.Array]) -> tuple[Sums, jax.Array]:
                rows = _microbatch(batch, i)
                rewards = self.model.rewards(params, rows)
                sums = jax.tree.map(jnp.add, carry[0], self.objective(rewards, rows))
                return sums, carry[1].at[i].set(rewards)

            rewards = jnp.zeros(batch["labels"].shape, jnp.float32)
            sums = _zeros(self.objective, rewards[0], _microbatch(batch, 0))
            return jax.lax.fori_loop(0, microbatches[1], one, (sums, rewards))

        return jax.jit(evaluate, out_shardings=replicated(self.mesh))

    def _step(
        self, short_length: int, shardings: Params, state: State, batch: Batch, microbatches: jax.Array
    ) -> tuple[State, dict[str, Any]]:
        params = state["params"]
        # Before the loop: the terms of an objective have different weights, so each is divided by its own.
        totals = self.objective.totals(batch)

        def gradient(rows: Batch) -> tuple[Sums, Params]:
            def loss_share(params: Params) -> tuple[jax.Array, Sums]:
                sums = self.objective(self.model.rewards(params, rows), rows)
                return self.objective.share(sums, totals), sums

            gradients, sums = jax.grad(loss_share, has_aux=True)(params)
            # The sum over microbatches begins as zeros, which of themselves lie nowhere.
            return sums, jax.lax.with_sharding_constraint(gradients, shardings)

        if next(iter(batch.values())).shape[0] == 1:  # no second set of gradients in memory
            sums, gradients = gradient(_microbatch(batch, 0))
        else:
            sums, gradients = _accumulate(gradient, batch, microbatches, short_length)
        grad_norm = optax.tree.norm(gradients)
        if self.grad_clip > 0:
            scale = jnp.minimum(1.0, self.grad_clip / jnp.maximum(grad_norm, 1e-30))
            gradients = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients)
        updates, opt_state = self.optimizer.update(gradients, state["opt_state"], params)
        state = {"step": state["step"] + 1, "params": optax.apply_updates(params, updates), "opt_state": opt_state}
        report = {"sums": sums, "grad_norm": grad_norm, "learning_rate": self.schedule(state["step"] - 1)}
        return state, report


def _accumulate(function: Callable[[Batch], Any], batch: Batch, microbatches: jax.Array, short_length: int) -> Any:
    """Returns the sum of `function(rows)` over a step's microbatches: the whole ones, then those that are cut."""
    cut = lambda rows: {name: leaf[:, :short_length] if name in PER_TOKEN else leaf for name, leaf in rows.items()}
    add = lambda rows, total: jax.tree.map(jnp.add, total, function(rows))
    total = _zeros(function, _microbatch(batch, 0))
    total = jax.lax.fori_loop(0, microbatches[0], lambda i, total: add(_microbatch(batch, i), total), total)
    if not short_length:
        return total
    return jax.lax.fori_loop(*microbatches, lambda i, total: add(cut(_microbatch(batch, i)), total), total)


def _microbatch(batch: Batch, i: Any) -> Batch:
    return {name: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False) for name, leaf in batch.items()}


def _zeros(function: Callable, *arguments: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *arguments))


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Returns which of a microbatch's `rows` the devices of this process hold, sorted."""
    parts = NamedSharding(mesh, P(ROWS)).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[part] for part in parts]))


def batch_sharding(mesh: Mesh, name: str) -> NamedSharding:
    """Returns where a stacked batch's array [M, B, ...] lies: rows split, and tokens too along `sequence`."""
    return NamedSharding(mesh, P(None, ROWS, "sequence") if name in PER_TOKEN else P(None, ROWS))
