"""The train state, and the jitted train and evaluation steps over it.

Axis letters: M microbatches, B rows of a microbatch, R readouts, A attributes.
"""

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

from rmjax.core import pytree
from rmjax.core.mesh import ROWS, replicated
from rmjax.data.schema import PER_TOKEN
from rmjax.models import partition
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.feature_model import FeatureModel
from rmjax.models.sharding import sharded_shapes
from rmjax.training.losses import Batch
from rmjax.training.members import Members
from rmjax.training.objectives import Objective, Sums

State = dict[str, Any]  # step: int32 [], params (the trained ones), frozen (the others), opt_state


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Model, objective, optimizer and mesh of the train step; `schedule` only reports the learning rate."""

    model: RewardModel | FeatureModel
    objective: Objective
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    grad_clip: float  # maximum global norm; 0: no clipping
    mesh: Mesh
    trainable: str = ""  # regex of the paths of the parameters that are trained; the others are constants
    skip_non_finite: bool = False  # leave out updates by losses or gradients that are not finite
    members: Members | None = None  # of the head, with the weights of their data; None: one

    def init(self, params: Params) -> State:
        """Returns the state before the first step; see `rmjax.models.partition.store` for its dtypes."""
        trained, frozen = partition.store(params, self.trainable, self.model)
        opt_state = self.optimizer.init(trained)
        return {"step": jnp.zeros((), jnp.int32), "params": trained, "frozen": frozen, "opt_state": opt_state}

    def params(self, state: State) -> Params:
        """Returns all parameters of a state."""
        return pytree.merge(state["params"], state["frozen"])

    def abstract_state(self) -> State:
        """Returns shapes, dtypes and shardings of the whole state."""
        return sharded_shapes(self.mesh, jax.eval_shape(self.init, self.model.shapes()))

    def shardings(self) -> State:
        """Returns the sharding of each leaf of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())

    def compile_step(self, short_length: int) -> Callable[[State, Batch, jax.Array], tuple[State, dict[str, Any]]]:
        """Returns `step(state, batch, microbatches) -> (state, outputs)`; the given state is donated.

        `batch` is [M, B, ...]; `microbatches`, int32 [2], counts its full and all its used microbatches: those between
        are truncated to `short_length` tokens, and the rest not computed, so one program serves any number. `outputs`
        holds the objective's `sums`, `grad_norm` (before clipping) and `learning_rate`.
        """
        shardings = self.shardings()
        return jax.jit(
            functools.partial(self._step, short_length, shardings["params"]),
            donate_argnums=0,
            in_shardings=(shardings, None, None),
            out_shardings=(shardings, replicated(self.mesh)),
        )

    def compile_evaluation(self) -> Callable[[Params, Batch, jax.Array], tuple[Sums, jax.Array]]:
        """Returns `evaluate(params, batch, microbatches) -> (objective's sums, rewards float32 [M, B, R, A])`."""

        def evaluate(params: Params, batch: Batch, microbatches: jax.Array) -> tuple[Sums, jax.Array]:
            def body(i: Any, carry: tuple[Sums, jax.Array]) -> tuple[Sums, jax.Array]:
                rows = microbatch(batch, i)
                rewards = self.model.rewards(params, rows)
                sums = jax.tree.map(jnp.add, carry[0], self.objective(rewards, rows))
                return sums, carry[1].at[i].set(rewards)

            rewards = jnp.zeros(batch["labels"].shape, jnp.float32)
            sums = _zeros_like_result(self.objective, rewards[0], microbatch(batch, 0))
            return jax.lax.fori_loop(0, microbatches[1], body, (sums, rewards))

        return jax.jit(evaluate, out_shardings=replicated(self.mesh))

    def _sums(self, params: Params, rows: Batch) -> Sums:
        if self.members is None:
            return self.objective(self.model.rewards(params, rows), rows)
        rewards = self.model.member_rewards(params, self.model.features(params, rows))
        return self.members.sums(self.objective, rewards, rows)

    def _step(
        self, short_length: int, shardings: Params, state: State, batch: Batch, microbatches: jax.Array
    ) -> tuple[State, dict[str, Any]]:
        params, frozen = state["params"], state["frozen"]
        # Before accumulation: each loss is divided by its own total weight, so their sum cannot be divided afterwards.
        total_weights = self.objective.total_weights(batch)

        def sums_and_gradients(rows: Batch) -> tuple[Sums, Params]:
            def loss_share(params: Params) -> tuple[jax.Array, Sums]:
                sums = self._sums(pytree.merge(params, frozen), rows)
                return self.objective.loss_share(sums, total_weights), sums

            gradients, sums = jax.grad(loss_share, has_aux=True)(params)
            # Accumulation starts from zeros, which have no sharding of their own to propagate.
            return sums, jax.lax.with_sharding_constraint(gradients, shardings)

        if next(iter(batch.values())).shape[0] == 1:  # without accumulation: one set of gradients in memory, not two
            sums, gradients = sums_and_gradients(microbatch(batch, 0))
        else:
            sums, gradients = _accumulate(sums_and_gradients, batch, microbatches, short_length)
        grad_norm = optax.tree.norm(gradients)
        if self.grad_clip > 0:
            scale = jnp.minimum(1.0, self.grad_clip / jnp.maximum(grad_norm, 1e-30))
            gradients = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients)
        updates, opt_state = self.optimizer.update(gradients, state["opt_state"], params)
        changed = {"step": state["step"] + 1, "params": optax.apply_updates(params, updates), "opt_state": opt_state}
        if self.skip_non_finite:
            finite = jnp.isfinite(grad_norm) & jnp.all(jnp.stack([jnp.isfinite(x) for x in jax.tree.leaves(sums)]))
            keep = lambda name: jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed[name], state[name])
            changed |= {name: keep(name) for name in ("params", "opt_state")}
        state = state | changed
        outputs = {"sums": sums, "grad_norm": grad_norm, "learning_rate": self.schedule(state["step"] - 1)}
        return state, outputs


def _accumulate(function: Callable[[Batch], Any], batch: Batch, microbatches: jax.Array, short_length: int) -> Any:
    """Returns the sum of `function(rows)` over a step's full microbatches, then over its truncated ones."""
    truncate = lambda rows: {name: leaf[:, :short_length] if name in PER_TOKEN else leaf for name, leaf in rows.items()}
    add = lambda rows, total: jax.tree.map(jnp.add, total, function(rows))
    full, used = microbatches[0], microbatches[1]
    total = _zeros_like_result(function, microbatch(batch, 0))
    total = jax.lax.fori_loop(0, full, lambda i, total: add(microbatch(batch, i), total), total)
    if not short_length:
        return total
    return jax.lax.fori_loop(full, used, lambda i, total: add(truncate(microbatch(batch, i)), total), total)


def microbatch(batch: Batch, i: Any) -> Batch:
    """Returns microbatch i of a batch [M, B, ...]."""
    return {name: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False) for name, leaf in batch.items()}


def _zeros_like_result(function: Callable, *arguments: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *arguments))


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """Returns the indices of a microbatch's `rows` that are on this process's devices, sorted, int64."""
    parts = NamedSharding(mesh, P(ROWS)).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[part] for part in parts]))


def shard_batch(mesh: Mesh, batch: dict[str, np.ndarray], num_rows: int, rows: np.ndarray) -> Batch:
    """Returns a step's arrays [M, B, ...] on the mesh, with rows split, and tokens over the axis `sequence`.

    `batch` holds the process's part [M, len(rows), ...], with `rows` from `local_rows`; `num_rows` is B.
    """

    def place(name: str, local: np.ndarray) -> jax.Array:
        sharding = NamedSharding(mesh, P(None, ROWS, "sequence") if name in PER_TOKEN else P(None, ROWS))
        if len(rows) == num_rows:
            return jax.device_put(local, sharding)

        def shard(index: Any) -> np.ndarray:
            local_index = np.searchsorted(rows, np.arange(num_rows)[index[1]])
            return local[index[0]][:, local_index][(slice(None), slice(None), *index[2:])]

        return jax.make_array_from_callback((local.shape[0], num_rows, *local.shape[2:]), sharding, shard)

    return {name: place(name, local) for name, local in batch.items()}
