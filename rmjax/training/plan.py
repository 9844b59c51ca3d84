"""What a training step needs on devices that need not be there: memory, FLOPs, communication, time."""

import dataclasses
import math
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from rmjax.core import pytree
from rmjax.core.chips import CHIPS, Chip
from rmjax.core.errors import InputError
from rmjax.models.decoder import RewardModel
from rmjax.models.partition import split
from rmjax.models.sharding import bytes_per_device
from rmjax.training.compilation import StepShape, compile_step
from rmjax.training.step import Trainer

_DTYPES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_SHAPE = re.compile(rf"\b({'|'.join(_DTYPES)})\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({_KINDS})(-start)?\(")
_SCATTER = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (\S+) fusion\(.*calls=%?(all-reduce-scatter[\w.-]*)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_RING = re.compile(r"%([\w.-]*windowed_dot_general_body[\w.-]*) ")
_PAIR = re.compile(r"\{(\d+),(\d+)\}")
_NO_MEMORY = re.compile(r"Used ([\d.]+)([KMG]) of ([\d.]+)([KMG]) hbm", re.IGNORECASE)
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


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


class _DoesNotFit(Exception):
    """The compiler found no allocation; `peak` and `available` are bytes."""

    def __init__(self, peak: float, available: float):
        super().__init__(peak, available)
        self.peak, self.available = peak, available


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
    try:
        compiled, available = _compile(trainer, rows_per_device, shape), chip.memory
        statistics, text = compiled.memory_analysis(), compiled.as_text()
        assert statistics is not None
        assert text is not None
        peak = statistics.peak_memory_in_bytes
        if chip.name == CHIPS["cpu"].name:  # XLA's peak leaves out temporary arrays there
            peak = statistics.argument_size_in_bytes + statistics.temp_size_in_bytes
        found = list(_collectives(text, _trip_counts(model, shape)))
        memory["batch"] = statistics.argument_size_in_bytes - sum(memory.values())
    except _DoesNotFit as error:
        peak, available, found = int(error.peak), error.available, []
        memory["batch"] = 0
    memory["gradients and activations"] = peak - sum(memory.values())
    collectives = {kind: sum(size for other, size in found if other == kind) for kind in sorted({k for k, _ in found})}
    between_nodes = bool(chip.node) and devices > chip.node
    slow = collectives if between_nodes else {}
    elements, used = _matrix_parameters(model, trainer.trainable), _matrix_parameters(model, trainer.trainable, True)
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


def _compile(trainer: Trainer, rows_per_device: int, shape: StepShape) -> jax.stages.Compiled:
    try:
        return compile_step(trainer, rows_per_device, shape)
    except jax.errors.JaxRuntimeError as error:
        if match := _NO_MEMORY.search(str(error)):
            peak, available = (float(match[i]) * _UNITS[match[i + 1].upper()] for i in (1, 3))
            raise _DoesNotFit(peak, available) from error
        raise InputError(f"the step cannot be compiled: {' '.join(str(error).split())[:400]}") from error


def _trip_counts(model: RewardModel, shape: StepShape) -> list[int]:
    """Returns how often the loops of a step run, the outermost first: microbatches, then layers."""
    return [*([shape.microbatches] if shape.microbatches > 1 else []), model.decoder.num_layers]


def _collectives(text: str, trip_counts: list[int]) -> Iterator[tuple[str, float]]:
    """Yields the kind of each collective in a compiled program, and the bytes that a device receives by it in a step.

    An all-reduce counts twice, since each byte is sent to be summed and sent back. The nesting of loops is read from
    the name of the operation; a channel that occurs several times is one collective, split to overlap with products.
    A loop that XLA makes of a gather or scatter and a product passes the shards around a ring, each to every device.
    """
    found: dict[tuple[str, str], float] = {}
    inside_scatter, ring = False, ""
    for line in text.splitlines():
        if line.startswith("%all-reduce-scatter"):
            inside_scatter = True
        elif line.startswith("}"):
            inside_scatter, ring = False, ""
        elif found_ring := _RING.match(line):
            ring = found_ring[1]
        scatter, match = _SCATTER.match(line), _COLLECTIVE.match(line)
        if scatter:
            kind, result, channel = "reduce-scatter", scatter[1], scatter[2]
        elif match and not inside_scatter:
            kind, result = match[2], match[1]
            channel = number[1] if (number := _CHANNEL.search(line)) else line
        else:
            continue
        name = match_name[1] if (match_name := _OP_NAME.search(line)) else ""
        times = 1
        for trips in trip_counts[: name.count("while/body")]:
            times *= trips
        sizes = _sizes(result)
        received = max(sizes) if match and match[3] else sum(sizes)  # asynchronous: operands are in the type too
        if ring and kind == "collective-permute":
            times, channel = times * (_ring_length(line) - 1), ring
        size = times * received * (2 if kind == "all-reduce" else 1)
        found[kind, channel] = max(size, found.get((kind, channel), 0.0))
    for (kind, _), size in found.items():
        yield kind, size


def _ring_length(line: str) -> int:
    """Returns the number of devices around which a collective-permute passes an array."""
    pairs = dict(_PAIR.findall(line))
    first = device = next(iter(pairs))
    length = 1
    while (device := pairs.get(device, first)) != first:
        length += 1
    return length


def _sizes(result: str) -> list[float]:
    """Returns the bytes of each array of a result's type, such as `bf16[4,8]{1,0}` or a tuple of them."""
    sizes = []
    for dtype, dimensions in _SHAPE.findall(result):
        sizes.append(float(math.prod(map(int, filter(None, dimensions.split(",")))) * _DTYPES[dtype]))
    return sizes


def _matrix_parameters(model: RewardModel, trainable: str, used: bool = False) -> tuple[float, float]:
    """Returns the number of elements of the layers' matrices, and of those of them that are trained.

    Args:
      used: count those that a token is multiplied with, thus only the experts chosen for it.
    """
    params = jax.eval_shape(model.init, jax.random.key(0))
    trained, _ = split(params, trainable)
    config = model.decoder
    share = config.experts_per_token / config.num_experts if used and config.num_experts else 1.0
    size = lambda path, leaf: leaf.size * (share if "/experts/" in path else 1.0)
    count = lambda tree: sum(size(path, leaf) for path, leaf in pytree.flatten(tree).items() if "/layers/" in path)
    return float(count(params)), float(count(trained))


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
