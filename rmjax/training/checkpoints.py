"""Checkpoints of the train state, by Orbax: the latest few, and the best ones; verified when they are read."""

import contextlib
import functools
import shutil
import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from rmjax.core import config as configs
from rmjax.core import pytree, state_files
from rmjax.core.errors import InputError, checkpoint_error
from rmjax.core.os_errors import save_error
from rmjax.core.processes import synchronized_errors
from rmjax.core.text import count_of
from rmjax.models import checkpoint_files
from rmjax.models.workdir import Workdir


class Checkpoints:
    """The checkpoints of a workdir: the latest `keep`, and the `keep_best` best by the validation metric `best`.

    Each is written under a temporary name and renamed when complete, so a killed run leaves no partial checkpoint.
    Damaged ones are moved to a directory `damaged` beside them: the run repeats their steps, and must neither read them
    nor replace them.

    Raises:
      InputError: there are checkpoints, but none is intact.
    """

    def __init__(self, workdir: Workdir, keep: int, best: str, keep_best: int = 1):
        self._workdir, self.directory = workdir, workdir.checkpoint_directory
        checkpoint_files.move_damaged(self.directory, required=(workdir.path / state_files.SUMS_FILE).exists())
        score = functools.partial(configs.selection_score, best=best)
        # A checkpoint saved between validations has no metrics; it may be one of the latest, but not the best.
        best_ones = checkpoint_managers.BestN(get_metric_fn=score, n=keep_best, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=score,  # without it Orbax would not store the metrics
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [checkpoint_managers.LatestN(keep), best_ones]
            ),
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_sums),
        )
        self._manager = ocp.CheckpointManager(self.directory.absolute(), options=options)
        self._saving = (0, 0)  # step, and bytes of metrics.jsonl that belong to it

    def latest(self) -> int | None:
        """Returns the step of the latest complete checkpoint, or None."""
        return self._manager.latest_step()

    def _write_sums(self) -> None:
        """Adds the checksums to the checkpoint that is complete, in the first process, before it gets its name."""
        step, size = self._saving
        checkpoint_files.write_sums(self.directory, step, self._workdir.metrics_file, size)

    def save(self, step: int, state: Any, metrics: dict[str, float] | None) -> None:
        """Saves the state except frozen parameters in the background; it may be donated as soon as this returns.

        The metrics of the run must have been written to disk before.

        Raises:
          InputError: the state is not finite.
        """
        state = _without_frozen(state)
        if wrong := pytree.non_finite_paths(state):
            raise InputError(
                f"step {step}: {wrong[0]} is not finite after the update ({count_of(len(wrong), 'array')} in all); no "
                "checkpoint is saved: lower config.optimizer.learning_rate. Earlier checkpoints are not affected"
            )
        with self._reported():
            self._manager.wait_until_finished()  # the previous save needs its own `_saving`
        file = self._workdir.metrics_file
        self._saving = (step, file.stat().st_size if file.exists() else 0)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state))
        with self._reported():
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def restore(self, step: int, abstract: Any, iterator: grain.DatasetIterator) -> Any:
        """Returns the state of `step` with the shardings of `abstract`, and sets the iterator to that step.

        The frozen parameters, which are not saved, are missing.

        Raises:
          InputError: the checkpoint is damaged, or of another model or step.
        """
        path = self.directory / str(step)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(_without_frozen(abstract)))
        fix = "remove this directory to resume from the previous checkpoint"
        try:
            state = self._manager.restore(step, args=items)["state"]
        except Exception as error:  # Orbax and TensorStore raise many types
            raise checkpoint_error(path, error, f"; if it is damaged, {fix}") from error
        if (saved := int(state["step"])) != step:
            raise InputError(f"{path} holds the state of step {saved}; rename it, or {fix}")
        if jax.process_index() == 0 and not checkpoint_files.history_is_intact(
            self.directory, step, self._workdir.metrics_file
        ):
            state_files.warn(
                f"{self._workdir.metrics_file} has changed since the checkpoint at step {step} was saved: lines were "
                "edited or damaged; parameters are not affected"
            )
        iterator.set_state({"next_index": step})  # the step is the iterator's whole state
        return state

    def add_metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the metrics of a validation to the checkpoint of `step`, which was saved without it."""
        with synchronized_errors():
            if jax.process_index() == 0:
                checkpoint_files.add_metrics(self.directory, step, metrics)
        self._manager.reload()

    def check(self) -> None:
        """Raises InputError if a save in the background has failed."""
        with self._reported():
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Raises InputError for a failed save, and removes its files: they would keep a full disk full."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many types
            if jax.process_index() == 0:
                self._remove_unfinished()
            raise save_error(self.directory / str(self._saving[0]), error) from error

    def _remove_unfinished(self) -> None:
        """Removes the files of a failed save.

        Orbax reports the first error while its other threads still write, so removal is repeated until nothing has
        reappeared for a moment; what they write later is removed when a manager is opened.
        """
        deadline, absent_since = time.monotonic() + 10, None
        while (now := time.monotonic()) < deadline:
            if paths := list(self.directory.glob("*.orbax-checkpoint-tmp*")):
                absent_since = None
                for path in paths:
                    shutil.rmtree(path, ignore_errors=True)
            elif absent_since is None:
                absent_since = now
            elif now - absent_since > 0.5:
                return
            time.sleep(0.05)

    def close(self) -> None:
        """Waits for unfinished saves and releases the manager."""
        with self._reported():
            self._manager.close()


def _without_frozen(state: Any) -> Any:
    return {name: part for name, part in state.items() if name != "frozen"}
