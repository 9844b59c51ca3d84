"""PPO critic on the devices: values of every token, clipped value loss, optimizer step and checkpoints.

Axis letters: B packed rows, T tokens of a row, n tokens of a sequence.
"""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rmjax.core import pytree, state_files
from rmjax.core.errors import InputError, checkpoint_error
from rmjax.core.mesh import ROWS, replicated
from rmjax.data.packing.rows import fill_rows, pack, split_readouts
from rmjax.data.schema import Tree, packed_spec
from rmjax.data.tokens.trees import make_tree
from rmjax.models import checkpoint_files
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.sharding import sharded_shapes, state_shardings
from rmjax.serving.engine.offload import DeviceMemory
from rmjax.serving.errors import NotFinite
from rmjax.serving.metrics import Metrics, ModelMetrics

CLIP_RANGE = 0.2  # of the values around those at sampling time, as in NeMo-Aligner's critic
_GRAD_CLIP = 1.0
_TARGETS = 3  # per token: return, previous value, mask; stored as the labels of its readout
_MAX_CHECKPOINTS = 2

State = dict[str, Any]  # step: int32 [], params, opt_state


class Critic:
    """A value model, initialized as a reward model whose head is read at every token.

    Sequences are packed into rows of one length, so that values and training need one compiled program each.

    Args:
      params: of a reward model with one attribute; donated.
      row_length: the longest sequence in tokens; T is the next multiple of the mesh's axis `sequence`.
      rows: B of a microbatch, a multiple of the mesh's row shards.
      directory: of the checkpoints; training continues from the latest one.
      memory: offloads parameters and optimizer state; None keeps them on the devices.

    Raises:
      InputError: the model has several attributes, or the checkpoint cannot be restored.
    """

    def __init__(
        self,
        model: RewardModel,
        params: Params,
        mesh: Mesh,
        *,
        row_length: int,
        rows: int,
        learning_rate: float,
        directory: pathlib.Path,
        memory: DeviceMemory | None = None,
        metrics: ModelMetrics | None = None,
    ):
        if len(model.head.attributes) != 1:
            raise InputError(
                f"the critic's model has the attributes {', '.join(model.head.attributes)}; expected one: choose "
                "another --critic"
            )
        if not math.isfinite(learning_rate):
            raise InputError(f"--critic_learning_rate is {learning_rate}; expected a finite number")
        self.model = dataclasses.replace(model, mean_readout=False)  # a value for every token
        self.row_length, self.learning_rate = row_length, learning_rate
        shards = mesh.shape["sequence"]
        self._mesh, self._rows, self._slots = mesh, rows, -(-row_length // shards) * shards
        adamw = optax.adamw(learning_rate, weight_decay=0.0)
        self._optimizer = optax.chain(optax.clip_by_global_norm(_GRAD_CLIP), adamw)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)  # see `rmjax.training.step.Trainer.init`
        init = lambda params: {"step": jnp.int32(0), "params": params, "opt_state": self._optimizer.init(params)}
        abstract = jax.eval_shape(init, params)
        shardings = state_shardings(mesh, abstract)
        self._directory, self._saving = directory.absolute(), 0  # the step that is being saved
        checkpoint_files.move_damaged(self._directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_MAX_CHECKPOINTS,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=lambda: checkpoint_files.write_sums(self._directory, self._saving)
            ),
        )
        self._checkpoints = ocp.CheckpointManager(self._directory, options=options)
        step = self.checkpoint_step = self._checkpoints.latest_step()  # None if there is no checkpoint
        if step is None:
            state: State = jax.jit(init, donate_argnums=0, out_shardings=shardings)(params)
        else:
            state = self._restore(step, sharded_shapes(mesh, abstract), directory)
        self._set_state(state)
        self._memory, metrics = memory or DeviceMemory(), metrics or ModelMetrics(Metrics(), "")
        self._params_arrays = self._memory.register(self, "params", metrics)
        self._opt_state_arrays = self._memory.register(self, "opt_state", metrics)
        self._values = jax.jit(self._all_values, out_shardings=replicated(mesh))
        self._add = jax.jit(self._accumulate, donate_argnums=1, out_shardings=(replicated(mesh), shardings["params"]))
        self._update = jax.jit(self._apply, donate_argnums=0, out_shardings=shardings)

    @property
    def _state(self) -> State:
        return {"step": self.step, "params": self.params, "opt_state": self.opt_state}

    def _set_state(self, state: State) -> None:
        self.step, self.params, self.opt_state = state["step"], state["params"], state["opt_state"]

    def _restore(self, step: int, abstract: State, directory: pathlib.Path) -> State:
        try:
            if state_files.read_sums(self._directory / str(step)) is None:
                state_files.warn_unverified(self._directory / str(step))
            state = self._checkpoints.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as error:  # Orbax and TensorStore raise many types
            fix = ": if it is damaged, remove it; if it belongs to another critic, choose another --critic_dir"
            raise checkpoint_error(directory / str(step), error, fix) from error
        if (saved := int(state["step"])) != step:
            raise InputError(f"{directory / str(step)} holds the state of step {saved}; rename or remove it")
        return state

    def warm_up(self) -> None:
        """Compiles and runs every program without changing the state."""
        self.values([np.zeros(1, np.int32)])
        self.train([np.zeros(1, np.int32)], [np.zeros((1, _TARGETS), np.float32)])

    def values(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the value at each token, float32 [n], of sequences int32 [n]."""
        trees = [_tree(sequence) for sequence in sequences]
        found: dict[int, np.ndarray] = {}
        counts = np.array([len(sequence) for sequence in sequences])
        with self._memory.resident(self._params_arrays), jax.set_mesh(self._mesh):
            for rows, batch in self._batches(trees):
                found |= split_readouts(np.asarray(self._values(self.params, batch)), rows, counts)
        return [found[i] for i in range(len(trees))]

    def train(self, sequences: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> float:
        """Takes one optimizer step on all sequences and returns the loss before it: `clipped_value`, sum over weight.

        The state does not change if the mask is 0 everywhere, or if the loss, the gradient or a new parameter is not
        finite.

        Args:
          sequences: int32 [n] each.
          targets: float32 [n, 3] each: return, previous value and mask of every token.
        """
        weight = float(sum(target[:, 2].sum() for target in targets))
        trees = [_tree(sequence, target) for sequence, target in zip(sequences, targets, strict=True)]
        with self._memory.resident(self._params_arrays, self._opt_state_arrays), jax.set_mesh(self._mesh):
            gradients = jax.tree.map(jnp.zeros_like, self.params)
            total = 0.0
            for _, batch in self._batches(trees):
                loss, gradients = self._add(self.params, gradients, batch)
                total += float(loss)
            self._set_state(self._update(self._state, gradients, np.float32(weight), np.float32(total)))
        return total / weight if weight else 0.0

    def save(self) -> None:
        """Writes a checkpoint; returns when it is complete.

        Raises:
          NotFinite: the state is not finite; nothing is written.
        """
        step = int(self.step)
        with self._memory.lock:  # arrays are saved from device or host memory, but must not move meanwhile
            if step not in self._checkpoints.all_steps():
                if wrong := pytree.non_finite_paths(self._state):
                    fix = "use a lower --critic_learning_rate, and restart from the latest checkpoint"
                    raise NotFinite(f"step {step}: the critic's {wrong[0]} is not finite, so it is not saved; {fix}")
                self._saving = step
                self._checkpoints.save(step, args=ocp.args.StandardSave(self._state))
                self._checkpoints.wait_until_finished()
            self.checkpoint_step = step

    def _batches(self, trees: Sequence[Tree]) -> Iterator[tuple[list[list[int]], dict[str, jax.Array]]]:
        """Yields (rows of indices, their arrays on the devices) that cover every tree once."""
        packed = pack([tree.length for tree in trees], self._slots)
        spec = packed_spec(self._rows, self._slots, self._slots, 0, _TARGETS)
        for first in range(0, len(packed), self._rows):
            rows = packed[first : first + self._rows]
            batch = fill_rows([[trees[i] for i in row] for row in rows], spec)
            yield rows, jax.device_put(batch, NamedSharding(self._mesh, P(ROWS)))

    def _all_values(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        return self.model.rewards(params, batch)[..., 0]

    def _accumulate(self, params: Params, gradients: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, Params]:
        returns, previous, mask = jnp.moveaxis(jnp.nan_to_num(batch["labels"]), -1, 0)  # NaN at unused readouts

        def loss_sum(params: Params) -> jax.Array:
            return clipped_value(self._all_values(params, batch), previous, returns, mask)[0]

        loss, found = jax.value_and_grad(loss_sum)(params)
        return loss, jax.tree.map(jnp.add, gradients, found)

    def _apply(self, state: State, gradients: Params, weight: jax.Array, loss: jax.Array) -> State:
        gradients_finite = jnp.isfinite(optax.global_norm(gradients))
        gradients = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-30).astype(g.dtype), gradients)
        updates, opt_state = self._optimizer.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        valid = (weight > 0) & jnp.isfinite(loss) & gradients_finite & jnp.isfinite(optax.global_norm(params))
        new = {"step": state["step"] + 1, "params": params, "opt_state": opt_state}
        return jax.tree.map(lambda new, old: jnp.where(valid, new, old), new, state)


def clipped_value(
    values: jax.Array, old_values: jax.Array, returns: jax.Array, mask: jax.Array, clip: float = CLIP_RANGE
) -> tuple[jax.Array, jax.Array]:
    """1/2 max[(v - R)², (clip(v, v_old - e, v_old + e) - R)²], summed over the tokens of the mask.

    Args:
      values, old_values, returns, mask: float32 [B, T]: the critic's values v now, and v_old when the tokens were
        sampled, the returns R, and 1 on response tokens.
      clip: e.

    Returns:
      (sum of losses, sum of the mask).

    Source: Schulman et al. 2017 (arXiv 1707.06347), as in the PPO reference code and NeMo-Aligner.
    """
    clipped = jnp.clip(values, old_values - clip, old_values + clip)
    worst = jnp.maximum(jnp.square(values - returns), jnp.square(clipped - returns))
    return 0.5 * jnp.sum(mask * worst), jnp.sum(mask)


def _tree(sequence: np.ndarray, targets: np.ndarray | None = None) -> Tree:
    """Returns a tree with a readout at every token."""
    return make_tree([sequence], labels=targets, readouts=tuple((0, i) for i in range(len(sequence))))
