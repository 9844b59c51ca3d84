"""The training loop: dispatch ahead, log, validate, save, stop when told to."""

import dataclasses
import signal
import time
from typing import Any

import grain
import jax
import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.packing.pipeline import Step, materialise
from rmjax.data.packing.plan import BatchPlan
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.models.workdir import Workdir
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.logging import MetricsLog, Progress
from rmjax.training.step import State, Trainer, batch_sharding
from rmjax.training.validation import Validation


@dataclasses.dataclass(frozen=True)
class Split:
    """A dataset and its plan."""

    dataset: TokenizedDataset
    plan: BatchPlan


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When things happen, in steps."""

    validate_every: int
    save_every: int
    log_every: int
    best: str  # the validation metric that picks the best checkpoint


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to: the last step done, the validation metrics last seen, and whether it was told to stop."""

    step: int
    validation: dict[str, float]
    stopped: bool


class StopRequest:
    """Turns SIGTERM and the first Ctrl-C into a flag that the loop reads between steps.

    Of several processes each would stop at a step of its own; there SIGTERM is left to `Checkpoints.preempted`, whose
    handler JAX has installed, and Ctrl-C stops at once.
    """

    def __init__(self):
        self.requested = False
        numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}

    def _handle(self, number: int, frame: Any) -> None:
        self.requested = True
        signal.signal(number, self._previous[number])  # a second one stops at once

    def restore(self) -> None:
        """Puts the handlers back that were there before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def run(
    trainer: Trainer,
    state: State,
    iterator: grain.DatasetIterator,
    rows: np.ndarray,
    training: Split,
    validation: Split,
    schedule: Schedule,
    checkpoints: Checkpoints,
    workdir: Workdir,
) -> Outcome:
    """Trains from `state['step']` to the end of the plan.

    Raises:
      InputError: the loss or the gradient is not finite; names the step and the comparisons. Nothing is saved after it.
    """
    first, last = int(state["step"]), training.plan.num_steps
    quiet = jax.process_index() > 0
    log, progress = MetricsLog(workdir, first, quiet), Progress(last, first, quiet)
    step_function = trainer.compile_step(training.plan.short_length)
    evaluate = trainer.compile_evaluation()
    stop = StopRequest()
    latest: dict[str, float] = {}
    pending: tuple[int, Any] | None = None
    clock = time.perf_counter()

    def settle() -> None:
        """Reads and logs the step that was dispatched before; the device is at work on the next meanwhile."""
        nonlocal pending, clock
        if pending is None:
            return
        (step, report), pending = pending, None
        report = jax.device_get(report)
        now = time.perf_counter()
        metrics = trainer.objective.values(report["sums"]) | {"grad_norm": float(report["grad_norm"])}
        _check_finite(step, metrics, training)
        chosen = training.plan.comparisons(step - 1)
        seconds = now - clock
        clock = now
        metrics |= {
            "learning_rate": float(report["learning_rate"]),
            "tokens_per_second": float(training.dataset.lengths[chosen].sum()) / seconds,
            "comparisons_per_second": len(chosen) / seconds,
            "step_time": seconds,
        }
        if step % schedule.log_every == 0 or step == last:
            log.write(step, "train", metrics)
        progress.update(metrics)

    def validate(step: int) -> dict[str, float]:
        nonlocal clock
        started = time.perf_counter()
        metrics = run_validation(trainer, evaluate, state["params"], validation, rows)
        clock += time.perf_counter() - started
        log.write(step, "validation", metrics)
        progress.say(f"step {step}: validation {headline(metrics)}")
        return metrics

    step = first
    try:
        if first == 0:
            latest = validate(0)
        while step < last:
            item = next(iterator)
            batch, microbatches = put(trainer, item, training.plan.microbatch_rows, rows)
            state, report = step_function(state, batch, microbatches)
            settle()
            step += 1
            pending = (step, report)
            stopping = stop.requested if jax.process_count() == 1 else checkpoints.preempted(step)
            validating = step % schedule.validate_every == 0 or step == last
            if validating or stopping or step % schedule.save_every == 0:
                settle()
                latest = validate(step) if validating else latest
                log.sync()
                checkpoints.save(step, state, iterator, latest if validating else None)
            if stopping:
                break
    finally:
        stop.restore()
        log.close()
        progress.close()
        checkpoints.close()
    return Outcome(step, latest, stopped=step < last)


def put(trainer: Trainer, item: Step, microbatch_rows: int, rows: np.ndarray) -> tuple[dict[str, jax.Array], jax.Array]:
    """Lays a host's share of a step out on the mesh."""

    def place(name: str, local: np.ndarray) -> jax.Array:
        shape = (local.shape[0], microbatch_rows, *local.shape[2:])
        sharding = batch_sharding(trainer.mesh, name)
        if len(rows) == microbatch_rows:
            return jax.device_put(local, sharding)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            wanted = np.arange(microbatch_rows)[index[1]]
            return local[index[0]][:, np.searchsorted(rows, wanted)][(slice(None), slice(None), *index[2:])]

        return jax.make_array_from_callback(shape, sharding, part)

    return {name: place(name, local) for name, local in item["batch"].items()}, item["microbatches"]


def run_validation(trainer: Trainer, evaluate: Any, params: Any, split: Split, rows: np.ndarray) -> dict[str, float]:
    """Returns the metrics over the whole split."""
    validation = Validation(split.dataset, split.plan, trainer.objective)
    for step in range(split.plan.num_steps):
        item = materialise(split.dataset, split.plan, step, rows)
        batch, microbatches = put(trainer, item, split.plan.microbatch_rows, rows)
        sums, rewards = evaluate(params, batch, microbatches)
        validation.add(step, sums, np.asarray(rewards))
    return validation.metrics()


def headline(metrics: dict[str, float]) -> str:
    """Returns the few validation metrics that a reader wants at a glance."""
    shown = [("loss", ""), ("accuracy", "accuracy_ceiling"), ("auc", ""), ("mse", "mse_floor"), ("spearman", "")]
    bounds = {"accuracy_ceiling": "ceiling", "mse_floor": "floor"}
    parts = []
    for name, bound in shown:
        if name in metrics:
            known = f" ({bounds[bound]} {metrics[bound]:.4f})" if bound in metrics else ""
            parts.append(f"{name} {metrics[name]:.4f}{known}")
    return ", ".join(parts)


def _check_finite(step: int, metrics: dict[str, float], split: Split) -> None:
    wrong = [name for name in ("loss", "grad_norm") if not np.isfinite(metrics[name])]
    if wrong:
        places = [split.dataset.where[i] for i in split.plan.comparisons(step - 1)]
        shown = ", ".join(places[:8]) + (f" and {len(places) - 8} more" if len(places) > 8 else "")
        raise InputError(
            f"step {step}: {wrong[0]} is {metrics[wrong[0]]}; its comparisons: {shown}. Lower optimizer.learning_rate, "
            "or look at these records; the last checkpoint is intact."
        )
