"""What a training step needs on devices that need not be there: memory, FLOPs, communication, time."""

import dataclasses

import jax.numpy as jnp

from rmjax.core.chips import Chip
from rmjax.core.compiled import compile_program
from rmjax.models.counts import matrix_parameters
from rmjax.models.decoder import RewardModel
from rmjax.models.sharding import bytes_per_device
from rmjax.training.compilation import StepShape, compile_step
from rmjax.training.step import Trainer


@dataclasses.dataclass(frozen=True)
class Work:
    """What the steps of a run compute.

    Attributes:
      tokens: unique tokens of a step, without padding.
      visible: pairs of tokens of a step of which one attends to the other.
      comparisons: of a step.
      steps: of the run.
    """

    tokens: float
    visible: float
    comparisons: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a step; bytes are per device.

    Attributes:
      fits: whether the peak is within the memory of a chip; None: its memory is unknown.
      memory: bytes of the parameters, the optimizer's moments, the batch, and the rest: gradients and activations.
      flops: of a step on all devices, for the tokens without padding and without recomputation.
      bytes: read from and written to the memory of a device in a step; an estimate, see `_memory_traffic`.
      collectives: {kind: bytes that a device receives in a step}.
      slow_collectives: those of them between nodes.
      seconds: of compute, memory and communication in a step; the step takes at least the longest.
    """

    topology: str
    devices: int
    fits: bool | None
    peak_bytes: int
    hbm_bytes: float
    memory: dict[str, int]
    flops: float
    bytes: float
    collectives: dict[str, float]
    slow_collectives: dict[str, float]
    seconds: dict[str, float]
    step_seconds: float
    mfu: float
    tokens_per_second: float
    comparisons_per_second: float
    device_hours: float


def make_plan(
    trainer: Trainer, topology: str, chip: Chip, rows_per_device: int, shape: StepShape, work: Work, slots: int
) -> Plan:
    """Returns the plan of a trainer's step.

    Args:
      slots: token slots of a step that are computed, with padding, over all rows.

    Raises:
      InputError: the step cannot be compiled.
    """
    devices, model = trainer.mesh.devices.size, trainer.model
    assert isinstance(model, RewardModel)
    state = trainer.abstract_state()
    memory = {
        "parameters": bytes_per_device(state["params"]) + bytes_per_device(state["frozen"]),
        "moments": bytes_per_device(state["opt_state"]),
    }
    made = compile_program(
        lambda: compile_step(trainer, rows_per_device, shape), chip, _trip_counts(model, shape), "the step"
    )
    memory["batch"] = made.argument_bytes - sum(memory.values()) if made.argument_bytes else 0
    peak, available = made.peak_bytes, made.available
    memory["gradients and activations"] = peak - sum(memory.values())
    collectives = made.collectives
    between_nodes = bool(chip.node) and devices > chip.node
    slow = collectives if between_nodes else {}
    elements, used = matrix_parameters(model, trainer.trainable), matrix_parameters(model, trainer.trainable, True)
    per_token, attention = 4 * used[0] + 2 * used[1], _attention_flops(model, work)
    flops = per_token * work.tokens + attention
    recomputed = 2 * used[0] if model.remat == "layer" else 0.0  # the forward pass once more
    computed = (per_token + recomputed) * slots + attention
    held = memory["parameters"] + memory["moments"]
    traffic = _memory_traffic(trainer, model, elements, held, shape.microbatches, slots / devices)
    bandwidth = chip.network_bandwidth if between_nodes else chip.link_bandwidth
    divide = lambda amount, rate: amount / rate if rate else 0.0
    seconds = {
        "compute": divide(computed / devices, chip.flops),
        "memory": divide(traffic, chip.memory_bandwidth),
        "communication": divide(sum(collectives.values()), bandwidth),
    }
    longest = max(seconds.values())
    return Plan(
        topology=topology,
        devices=devices,
        fits=peak <= available if available else None,
        peak_bytes=peak,
        hbm_bytes=available,
        memory=memory,
        flops=flops,
        bytes=traffic,
        collectives=collectives,
        slow_collectives=slow,
        seconds=seconds,
        step_seconds=longest,
        mfu=divide(flops, devices * chip.flops * longest) if longest else 0.0,
        tokens_per_second=divide(work.tokens, longest),
        comparisons_per_second=divide(work.comparisons, longest),
        device_hours=work.steps * longest * devices / 3600,
    )


def _trip_counts(model: RewardModel, shape: StepShape) -> list[int]:
    """Returns how often the loops of a step run, the outermost first: microbatches, then layers."""
    return [*([shape.microbatches] if shape.microbatches > 1 else []), model.decoder.num_layers]


def _attention_flops(model: RewardModel, work: Work) -> float:
    config = model.decoder
    return 12.0 * config.num_layers * config.num_heads * config.head_dim * work.visible


def _memory_traffic(
    trainer: Trainer, model: RewardModel, elements: tuple[float, float], held: int, microbatches: int, slots: float
) -> float:
    """Returns an estimate of the bytes that a device reads and writes in a step.

    Weights are read three times per microbatch in the computation's dtype (forward, gradients of inputs and of
    weights), the gradients' sum is read and written once per microbatch, the optimizer reads and writes parameters and
    moments, and some 34 activations of D elements per layer and slot are written and read (Korthikanti et al. 2022,
    arXiv 2205.05198, eq. 2, without the scores, in elements).

    Args:
      elements: of the layers' matrices, and of those of them that are trained.
      held: bytes of parameters and moments.
      slots: of tokens on the device.
    """
    item, tensor = jnp.dtype(model.dtype).itemsize, trainer.mesh.shape["tensor"]
    weights = 3 * item * elements[0] / tensor + 8 * elements[1] / trainer.mesh.devices.size
    activations = 2 * 17 * item * model.decoder.hidden_size * model.decoder.num_layers * slots / tensor
    return microbatches * weights + 2 * held + activations
