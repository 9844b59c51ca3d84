"""The training loop: asynchronous dispatch, logging, validation, checkpoints, and stopping on a signal."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

from rmjax.core.config import Config, selection_score
from rmjax.core.peers import stop_signal
from rmjax.core.stopping import StopRequest
from rmjax.data.packing.pipeline import materialize
from rmjax.data.packing.plan import BatchPlan
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.models.workdir import Workdir
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.logging import (
    WRITERS,
    CompositeWriter,
    MetricsWriter,
    OpenWriter,
    ProgressBar,
    kept_metrics,
    latest_validation,
)
from rmjax.training.non_finite import NonFiniteSteps
from rmjax.training.objectives import Objective
from rmjax.training.profiling import Profiler, parse_steps
from rmjax.training.step import State, Trainer, shard_batch
from rmjax.training.validation import Validation


@dataclasses.dataclass(frozen=True)
class Split:
    """A dataset, its batch plan, and the indices of a microbatch's rows that are on this process's devices."""

    dataset: TokenizedDataset
    plan: BatchPlan
    rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """The result of a run.

    Attributes:
      step: the last completed step.
      validation: the latest validation metrics.
      stopped: whether a signal stopped the run before its end.
      signal: the signal that was received, also during the last step; 0: none.
    """

    step: int
    validation: dict[str, float]
    stopped: bool
    signal: int = 0


class StepLogger:
    """Logs a step's metrics after the next step is dispatched, so that the devices never wait for the host."""

    def __init__(
        self,
        objective: Objective,
        training: Split,
        log_every: int,
        writer: MetricsWriter,
        progress: ProgressBar,
        non_finite: NonFiniteSteps,
    ):
        self._objective, self._training, self._log_every = objective, training, log_every
        self._writer, self._progress, self._non_finite = writer, progress, non_finite
        self._pending: tuple[int, dict[str, Any], Mapping[str, np.ndarray]] | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Starts the time of the next step now, so that it excludes validation."""
        self._clock = time.perf_counter()

    def add(self, step: int, outputs: dict[str, Any], batch: Mapping[str, np.ndarray]) -> None:
        """Logs the previous step (see `flush`) and keeps the outputs of `step`, which may not be computed yet."""
        self.flush()
        self._pending = (step, outputs, batch)

    def flush(self) -> None:
        """Waits for the latest step and logs it; raises InputError as `NonFiniteSteps.check`."""
        if self._pending is None:
            return
        (step, outputs, batch), self._pending = self._pending, None
        outputs = jax.device_get(outputs)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        metrics = self._objective.metrics(outputs["sums"]) | {"grad_norm": float(outputs["grad_norm"])}
        plan, dataset = self._training.plan, self._training.dataset
        comparisons = plan.comparisons(step - 1)
        if warning := self._non_finite.check(step, metrics, [dataset.where(i) for i in comparisons], batch):
            self._progress.print(warning)
            self._writer.write(step, "skipped", {"count": self._non_finite.count})
            return
        metrics |= {
            "learning_rate": float(outputs["learning_rate"]),
            "tokens_per_second": float(dataset.lengths[comparisons].sum()) / seconds,
            "comparisons_per_second": len(comparisons) / seconds,
            "step_time": seconds,
        }
        if step % self._log_every == 0 or step == plan.num_steps:
            self._writer.write(step, "train", metrics)
        self._progress.update(metrics)


def intervals(config: Config, num_steps: int) -> tuple[int, int]:
    """Returns the numbers of steps between two validations and between two checkpoints of a run."""
    validate_every = config.evaluation.every or max(1, num_steps // 10)
    return validate_every, config.checkpoint.every or validate_every


def run(
    config: Config,
    trainer: Trainer,
    state: State,
    iterator: grain.DatasetIterator,
    training: Split,
    validation: Split,
    checkpoints: Checkpoints,
    workdir: Workdir,
    writers: Sequence[OpenWriter],
    progress: ProgressBar,
    stop: StopRequest,
) -> TrainingResult:
    """Trains from `state['step']`, where `iterator` is, to the end of the training plan or until a signal stops it.

    `state` is donated; `writers` are used in addition to `logging.WRITERS`; `progress` is closed. Raises InputError if
    a step's loss or gradient is not finite and is not skipped; no checkpoint is saved after that step.
    """
    step, last = int(state["step"]), training.plan.num_steps
    validate_every, save_every = intervals(config, last)
    metrics = latest_validation(workdir.metrics_file, step)
    writer = CompositeWriter(workdir, step, () if jax.process_index() > 0 else (*WRITERS, *writers))
    skipped = sum(line["split"] == "skipped" for line in kept_metrics(workdir.metrics_file, step))
    non_finite = NonFiniteSteps(workdir, config.train.skip_non_finite, skipped)
    logger = StepLogger(trainer.objective, training, config.train.log_every, writer, progress, non_finite)
    train_step, evaluate = trainer.compile_step(training.plan.short_length), trainer.compile_evaluation()
    profiler = Profiler(parse_steps(config.train.profile), workdir.path / "profile")

    received = 0  # the signal for which the run stops

    def stopping() -> int:
        nonlocal received
        received = received or stop_signal(stop)
        return received

    def validate() -> dict[str, float] | None:
        """Returns the metrics; None if the run has to stop, at once, since a validation can be long."""
        metrics = None if received else run_validation(trainer, evaluate, trainer.params(state), validation, stopping)
        if metrics is None:
            return None
        logger.restart_clock()
        writer.write(step, "validation", metrics)
        progress.print(f"step {step}: validation {summarize(metrics)}")
        return metrics

    closing = contextlib.closing
    with closing(checkpoints), closing(progress), closing(writer), closing(profiler):
        if step == 0:
            metrics = validate() or {}
            selection_score(metrics, config.checkpoint.best)  # raises if the validation data does not give this metric
        elif (step % validate_every == 0 or step == last) and workdir.validation_metrics(step) is None:
            # A signal came before or during the validation of this checkpoint.
            metrics = validate() or {}
            checkpoints.add_metrics(step, metrics)
        while step < last:
            item = next(iterator)
            profiler.before(step + 1)
            batch = shard_batch(trainer.mesh, item["batch"], training.plan.microbatch_rows, training.rows)
            state, outputs = train_step(state, batch, item["microbatches"])
            step += 1
            profiler.after(step, outputs)
            logger.add(step, outputs, item["batch"])
            stop.arm()  # from now on a signal stops the run after a step and saves it
            checkpoints.check()
            validating = step % validate_every == 0 or step == last
            if stopping() or validating or step % save_every == 0:
                logger.flush()
                found = validate() if validating else None
                metrics = found or metrics
                writer.flush()
                checkpoints.save(step, state, found)
            if received:
                break
    return TrainingResult(step, metrics, stopped=step < last, signal=received or stop.number)


def run_validation(
    trainer: Trainer, evaluate: Any, params: Any, split: Split, stopping: Callable[[], int]
) -> dict[str, float] | None:
    """Returns the metrics of `params` over the whole split; None if `stopping()` became true, before a batch.

    `evaluate` is from `Trainer.compile_evaluation`.
    """
    validation = Validation(split.dataset, split.plan, trainer.objective)
    for step in range(split.plan.num_steps):
        if stopping():
            return None
        item = materialize(split.dataset, split.plan, step, split.rows)
        batch = shard_batch(trainer.mesh, item["batch"], split.plan.microbatch_rows, split.rows)
        sums, rewards = evaluate(params, batch, item["microbatches"])
        validation.add(step, sums, np.asarray(rewards))
    return validation.metrics()


def summarize(metrics: dict[str, float]) -> str:
    """Returns the main validation metrics in one line, each with its best reachable value where that is known.

    >>> summarize({"loss": 0.5, "accuracy": 0.75, "accuracy_ceiling": 0.9, "margin": 1.0})
    'loss 0.5000, accuracy 0.7500 (ceiling 0.9000)'
    """
    parts = []
    for name, bound in (("loss", ""), ("accuracy", "ceiling"), ("auc", ""), ("mse", "floor"), ("spearman", "")):
        if name in metrics:
            best = metrics.get(f"{name}_{bound}")
            parts.append(f"{name} {metrics[name]:.4f}" + (f" ({bound} {best:.4f})" if best is not None else ""))
    return ", ".join(parts)
