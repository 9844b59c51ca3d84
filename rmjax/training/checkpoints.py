"""Checkpoints of the train state and the data iterator, by Orbax: the latest few, and the best."""

import functools
import pathlib
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from rmjax.core import config as configs
from rmjax.core.errors import checkpoint_error


class Checkpoints:
    """The checkpoints in `directory`: the latest `keep`, and the best by the validation metric `best`.

    Each is written under a temporary name and renamed when complete, so a killed run leaves no partial checkpoint.
    """

    def __init__(self, directory: pathlib.Path, keep: int, best: str):
        self.directory = directory
        score = functools.partial(configs.selection_score, best=best)
        # A checkpoint saved between validations has no metrics; it may be one of the latest, but not the best.
        best_one = checkpoint_managers.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=score,  # without it Orbax would not store the metrics
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [checkpoint_managers.LatestN(keep), best_one]
            ),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
        self._asked = 0  # the last step of `preempted`

    def latest(self) -> int | None:
        """Returns the step of the latest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, iterator: grain.DatasetIterator, metrics: dict[str, float] | None) -> None:
        """Saves the state except frozen parameters in the background; it may be donated as soon as this returns."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_without_frozen(state)), iterator=grain.checkpoint.CheckpointSave(iterator)
        )
        self._manager.save(step, args=items, metrics=metrics, force=True)

    def restore(self, step: int, abstract: Any, iterator: grain.DatasetIterator) -> Any:
        """Returns the state of `step` with the shardings of `abstract`, and sets the iterator to that step.

        The frozen parameters, which are not saved, are missing.

        Raises:
          InputError: the checkpoint is damaged, or of another model.
        """
        path = self.directory / str(step)
        items: dict[str, Any] = {"state": ocp.args.StandardRestore(_without_frozen(abstract))}
        if (path / "iterator" / f"process_{jax.process_index()}-of-{jax.process_count()}.json").exists():
            items["iterator"] = grain.checkpoint.CheckpointRestore(iterator)
        else:  # saved by another number of processes; the step is the iterator's whole state
            iterator.set_state({"next_index": step})
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))["state"]
        except Exception as error:  # Orbax and TensorStore raise many types
            fix = "; if it is damaged, remove this directory to resume from the previous checkpoint"
            raise checkpoint_error(path, error, fix) from error

    def preempted(self, step: int) -> bool:
        """Returns whether one of several processes received SIGTERM and all agreed to stop at `step`."""
        # JAX assigns a signal to the number after the last one that any process has asked for. A signal during start-up
        # is assigned to number 1, so none may be left out after resuming.
        first, self._asked = self._asked + 1, step
        numbers = range(first, step + 1) if jax.process_count() > 1 else ()
        return any(self._manager.reached_preemption(number) for number in numbers)

    def close(self) -> None:
        """Waits for unfinished saves and releases the manager."""
        self._manager.close()


def _without_frozen(state: Any) -> Any:
    return {name: part for name, part in state.items() if name != "frozen"}
