"""Checkpoints of the train state and the data iterator, by Orbax: the last few, and the best."""

import functools
import pathlib
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from rmjax.core import config as configs
from rmjax.core.errors import InputError


class Checkpoints:
    """The checkpoints of a workdir.

    A checkpoint is written to a temporary name and renamed when whole, so a killed run leaves none that is half there.
    """

    def __init__(self, directory: pathlib.Path, keep: int, best: str):
        self.directory = directory
        selection = functools.partial(configs.selection, best=best)
        # A checkpoint made between validations has no metrics; it is kept as one of the last, never as the best.
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(keep),
                checkpoint_managers.BestN(get_metric_fn=selection, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self.directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                # The policy decides what is kept; best_fn makes Orbax store the metrics at all.
                best_fn=selection,
                preservation_policy=policy,
                cleanup_tmp_directories=True,
            ),
        )

    def latest(self) -> int | None:
        """Returns the newest step that was saved whole, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, iterator: grain.DatasetIterator, metrics: dict[str, float] | None) -> None:
        """Saves in the background; the state may be donated as soon as this returns."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), iterator=grain.checkpoint.CheckpointSave(iterator)
        )
        self._manager.save(step, args=items, metrics=metrics, force=True)

    def restore(self, step: int, abstract: Any, iterator: grain.DatasetIterator) -> Any:
        """Returns the state of `step` onto the shardings of `abstract`, and sets the iterator.

        A checkpoint of another number of processes has no iterator for this one; the step says all that is needed.

        Raises:
          InputError: the checkpoint is damaged or of another model.
        """
        path = self.directory / str(step)
        items = {"state": ocp.args.StandardRestore(abstract)}
        if (path / "iterator" / f"process_{jax.process_index()}-of-{jax.process_count()}.json").exists():
            items["iterator"] = grain.checkpoint.CheckpointRestore(iterator)
        else:
            iterator.set_state({"next_index": step})
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))["state"]
        except Exception as error:  # Orbax and TensorStore raise whatever they find
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"checkpoint {path} cannot be read ({type(error).__name__}: {reason}). If it is damaged, remove this "
                "directory: the run then continues from the one before it."
            ) from error

    def preempted(self, step: int) -> bool:
        """Returns whether all processes agreed to stop here because one was told to (several processes only)."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the manager."""
        self._manager.close()
