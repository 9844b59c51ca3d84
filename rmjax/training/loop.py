"""The training loop: asynchronous dispatch, logging, validation, checkpoints, and stopping on a signal."""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import grain
import jax
import numpy as np

from rmjax.core.config import Config, selection_score
from rmjax.core.errors import InputError
from rmjax.data.packing.pipeline import materialize
from rmjax.data.packing.plan import BatchPlan
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.models.workdir import Workdir
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.logging import WRITERS, CompositeWriter, MetricsWriter, OpenWriter, ProgressBar, latest_validation
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
    """The last completed step, the latest validation metrics, and whether a signal stopped the run before its end."""

    step: int
    validation: dict[str, float]
    stopped: bool


class StopRequest:
    """Context manager that turns SIGTERM and the first SIGINT into a flag, which the loop reads between steps.

    Only the main thread can handle signals; in another thread nothing is changed.

    The processes of a multi-process run must stop at the same step: there `Checkpoints.preempted` reports SIGTERM,
    which JAX handles, and SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        handles = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        for number in (signal.SIGTERM, signal.SIGINT) if handles else ():
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: Any) -> None:
        self.requested = True
        signal.signal(number, self._previous[number])  # a second signal interrupts at once

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class StepLogger:
    """Logs a step's metrics after the next step is dispatched, so that the devices never wait for the host."""

    def __init__(
        self, objective: Objective, training: Split, log_every: int, writer: MetricsWriter, progress: ProgressBar
    ):
        self._objective, self._training, self._log_every = objective, training, log_every
        self._writer, self._progress = writer, progress
        self._pending: tuple[int, dict[str, Any]] | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Starts the time of the next step now, so that it excludes validation."""
        self._clock = time.perf_counter()

    def add(self, step: int, outputs: dict[str, Any]) -> None:
        """Logs the previous step (see `flush`) and keeps the outputs of `step`, which may not be computed yet."""
        self.flush()
        self._pending = (step, outputs)

    def flush(self) -> None:
        """Waits for the latest step and logs it; raises InputError if its loss or gradient is not finite."""
        if self._pending is None:
            return
        (step, outputs), self._pending = self._pending, None
        outputs = jax.device_get(outputs)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        metrics = self._objective.metrics(outputs["sums"]) | {"grad_norm": float(outputs["grad_norm"])}
        plan, dataset = self._training.plan, self._training.dataset
        comparisons = plan.comparisons(step - 1)
        for name in ("loss", "grad_norm"):
            if not np.isfinite(metrics[name]):
                raise InputError(
                    f"step {step}: {name} is {metrics[name]}, not finite; the step's comparisons: "
                    f"{', '.join(dataset.where(i) for i in comparisons[:8])}{', …' if len(comparisons) > 8 else ''}; "
                    "lower config.optimizer.learning_rate or check these records. Earlier checkpoints are not affected"
                )
        metrics |= {
            "learning_rate": float(outputs["learning_rate"]),
            "tokens_per_second": float(dataset.lengths[comparisons].sum()) / seconds,
            "comparisons_per_second": len(comparisons) / seconds,
            "step_time": seconds,
        }
        if step % self._log_every == 0 or step == plan.num_steps:
            self._writer.write(step, "train", metrics)
        self._progress.update(metrics)


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
    a step's loss or gradient is not finite; no checkpoint is saved after that step.
    """
    step, last = int(state["step"]), training.plan.num_steps
    validate_every = config.evaluation.every or max(1, last // 10)
    save_every = config.checkpoint.every or validate_every
    metrics = latest_validation(workdir.metrics_file, step)
    writer = CompositeWriter(workdir, step, () if jax.process_index() > 0 else (*WRITERS, *writers))
    logger = StepLogger(trainer.objective, training, config.train.log_every, writer, progress)
    train_step, evaluate = trainer.compile_step(training.plan.short_length), trainer.compile_evaluation()
    profiler = Profiler(parse_steps(config.train.profile), workdir.path / "profile")

    def validate() -> dict[str, float]:
        metrics = run_validation(trainer, evaluate, trainer.params(state), validation)
        logger.restart_clock()
        writer.write(step, "validation", metrics)
        progress.print(f"step {step}: validation {summarize(metrics)}")
        return metrics

    closing = contextlib.closing
    with closing(checkpoints), closing(progress), closing(writer), closing(profiler):
        if step == 0:
            metrics = validate()
            selection_score(metrics, config.checkpoint.best)  # raises if the validation data does not give this metric
        while step < last:
            item = next(iterator)
            profiler.before(step + 1)
            batch = shard_batch(trainer.mesh, item["batch"], training.plan.microbatch_rows, training.rows)
            state, outputs = train_step(state, batch, item["microbatches"])
            step += 1
            profiler.after(step, outputs)
            logger.add(step, outputs)
            stopping = stop.requested or checkpoints.preempted(step)
            validating = step % validate_every == 0 or step == last
            if validating or stopping or step % save_every == 0:
                logger.flush()
                metrics = validate() if validating else metrics
                writer.flush()
                checkpoints.save(step, state, iterator, metrics if validating else None)
            if stopping:
                break
    return TrainingResult(step, metrics, stopped=step < last)


def run_validation(trainer: Trainer, evaluate: Any, params: Any, split: Split) -> dict[str, float]:
    """Returns the metrics of `params` over the whole split; `evaluate` is from `Trainer.compile_evaluation`."""
    validation = Validation(split.dataset, split.plan, trainer.objective)
    for step in range(split.plan.num_steps):
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
