"""The critic of PPO on the device: values of every token, the clipped value loss, its optimizer and checkpoints.

Axis letters: B packed rows, T tokens of a row, n tokens of a sequence.
"""

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

from rmjax.core.errors import InputError
from rmjax.core.mesh import ROWS, replicated
from rmjax.data.packing.rows import fill_rows, pack, split_readouts
from rmjax.data.schema import Tree, packed_spec
from rmjax.data.tokens.trees import make_tree
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.sharding import state_shardings
from rmjax.serving.engine.offload import Memory
from rmjax.serving.metrics import Metrics, ModelMetrics
from rmjax.serving.services.value_loss import clipped_value

_GRAD_CLIP = 1.0
_TARGETS = 3  # of a token: return, previous value, mask; they lie where training has the labels of a response
_KEPT = 2  # checkpoints

State = dict[str, Any]  # step: int32 [], params, opt_state


class Critic:
    """A value for every token, by a model that begins as the reward model: its head read everywhere.

    Sequences are packed into rows of one length, so one program each serves values and training, and nothing is padded.

    Args:
      params: of a reward model with one attribute; donated to training.
      row_length: the longest sequence, in tokens.
      rows: B of a microbatch, a multiple of the mesh's row shards.
      directory: of the checkpoints; training continues from the latest there.
      memory: moves parameters and optimizer state off the devices while others work; None leaves them there.
      metrics: of that; None counts for nobody.

    Raises:
      InputError: the model has several attributes, or the checkpoint is of another model.
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
        memory: Memory | None = None,
        metrics: ModelMetrics | None = None,
    ):
        if len(model.head.attributes) != 1:
            raise InputError(
                f"a critic gives one value, but this model has {', '.join(model.head.attributes)}; choose "
                "a model with one attribute"
            )
        self.model, self.row_length = model, row_length
        self._mesh, self._rows = mesh, rows
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(_GRAD_CLIP), optax.adamw(learning_rate, weight_decay=0.0)
        )
        init = lambda params: {
            "step": jnp.zeros((), jnp.int32),
            "params": params,
            "opt_state": self._optimizer.init(params),
        }
        abstract = jax.eval_shape(init, params)
        shardings = state_shardings(mesh, abstract)
        options = ocp.CheckpointManagerOptions(max_to_keep=_KEPT, enable_async_checkpointing=False)
        self._checkpoints = ocp.CheckpointManager(directory.absolute(), options=options)
        if (step := self._checkpoints.latest_step()) is None:
            state: State = jax.jit(init, donate_argnums=0, out_shardings=shardings)(params)
        else:
            place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
            state = self._restore(step, jax.tree.map(place, abstract, shardings), directory)
        self._keep(state)
        self._memory, metrics = memory or Memory(), metrics or ModelMetrics(Metrics(), "")
        self._held_params = self._memory.hold(self, "params", metrics)
        self._held_opt_state = self._memory.hold(self, "opt_state", metrics)
        whole = replicated(mesh)
        self._values = jax.jit(self._all_values, out_shardings=whole)
        self._add = jax.jit(self._accumulate, donate_argnums=1, out_shardings=(whole, shardings["params"]))
        self._update = jax.jit(self._apply, donate_argnums=0, out_shardings=shardings)

    @property
    def _state(self) -> State:
        return {"step": self.step, "params": self.params, "opt_state": self.opt_state}

    def _keep(self, state: State) -> None:
        self.step, self.params, self.opt_state = state["step"], state["params"], state["opt_state"]

    def _restore(self, step: int, abstract: State, directory: pathlib.Path) -> State:
        try:
            return self._checkpoints.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as error:  # Orbax and TensorStore raise whatever they find
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"checkpoint {directory / str(step)} cannot be read ({type(error).__name__}: {reason}); "
                "if it is damaged, remove it, and if it is of another critic, choose another --critic_dir"
            ) from error

    def warm_up(self) -> None:
        """Compiles and runs every program, without a change to the state's values."""
        self.values([np.zeros(1, np.int32)])
        self.train([np.zeros(1, np.int32)], [np.zeros((1, _TARGETS), np.float32)])

    def values(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the value at each token, float32 [n], of sequences int32 [n]."""
        trees = [_tree(sequence) for sequence in sequences]
        found: dict[int, np.ndarray] = {}
        counts = np.array([len(sequence) for sequence in sequences])
        with self._memory.using(self._held_params), jax.set_mesh(self._mesh):
            for rows, batch in self._batches(trees):
                found |= split_readouts(np.asarray(self._values(self.params, batch)), rows, counts)
        return [found[i] for i in range(len(trees))]

    def train(self, sequences: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> float:
        """Takes one optimizer step on all sequences and returns the loss before it.

            loss = sum_t m_t max((v_t - R_t)^2, (clip(v_t, p_t - 0.2, p_t + 0.2) - R_t)^2) / 2 / sum_t m_t

        v: values now, p: those of the rollout, R: returns, m: mask. Where the mask is 0 everywhere, or the loss or the
        gradient is not finite, nothing changes.

        Args:
          sequences: int32 [n] each.
          targets: float32 [n, 3] each: R, p and m of every token.
        """
        weight = float(sum(target[:, 2].sum() for target in targets))
        trees = [_tree(sequence, target) for sequence, target in zip(sequences, targets, strict=True)]
        with self._memory.using(self._held_params, self._held_opt_state), jax.set_mesh(self._mesh):
            gradients = jax.tree.map(jnp.zeros_like, self.params)
            total = 0.0
            for _, batch in self._batches(trees):
                loss, gradients = self._add(self.params, gradients, batch)
                total += float(loss)
            self._keep(self._update(self._state, gradients, np.float32(weight), np.float32(total)))
        return total / weight if weight else 0.0

    def save(self) -> None:
        """Writes a checkpoint; returns when it is whole."""
        step = int(self.step)
        with self._memory.paused():  # it is written from where it lies
            if step not in self._checkpoints.all_steps():
                self._checkpoints.save(step, args=ocp.args.StandardSave(self._state))
                self._checkpoints.wait_until_finished()

    def _batches(self, trees: Sequence[Tree]) -> Iterator[tuple[list[list[int]], dict[str, jax.Array]]]:
        """Yields (rows of indices, their arrays on the devices) that cover every tree once."""
        packed = pack([tree.length for tree in trees], self.row_length)
        spec = packed_spec(self._rows, self.row_length, self.row_length, 0, _TARGETS)
        for first in range(0, len(packed), self._rows):
            rows = packed[first : first + self._rows]
            batch = fill_rows([[trees[i] for i in row] for row in rows], spec)
            yield rows, jax.device_put(batch, NamedSharding(self._mesh, P(ROWS)))

    def _all_values(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        return self.model.rewards(params, batch)[..., 0]

    def _accumulate(self, params: Params, gradients: Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, Params]:
        returns, previous, mask = jnp.moveaxis(jnp.nan_to_num(batch["labels"]), -1, 0)  # NaN where no token is

        def loss_sum(params: Params) -> jax.Array:
            return clipped_value(self._all_values(params, batch), previous, returns, mask)[0]

        loss, found = jax.value_and_grad(loss_sum)(params)
        return loss, jax.tree.map(jnp.add, gradients, found)

    def _apply(self, state: State, gradients: Params, weight: jax.Array, loss: jax.Array) -> State:
        learned = (weight > 0) & jnp.isfinite(loss) & jnp.isfinite(optax.global_norm(gradients))
        gradients = jax.tree.map(lambda g: g / jnp.maximum(weight, 1e-30).astype(g.dtype), gradients)
        updates, opt_state = self._optimizer.update(gradients, state["opt_state"], state["params"])
        new = {
            "step": state["step"] + 1,
            "params": optax.apply_updates(state["params"], updates),
            "opt_state": opt_state,
        }
        return jax.tree.map(lambda new, old: jnp.where(learned, new, old), new, state)


def _tree(sequence: np.ndarray, targets: np.ndarray | None = None) -> Tree:
    """Returns a tree that is read at every token."""
    return make_tree([sequence], labels=targets, readouts=tuple((0, i) for i in range(len(sequence))))
