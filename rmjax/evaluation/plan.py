"""What scoring and serving need on devices that need not be there: memory, FLOPs, communication, time."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rmjax.core.chips import Chip, parse_topology
from rmjax.core.compiled import compile_program
from rmjax.core.mesh import AXES, ROWS, make_mesh, parse_sizes, row_shards
from rmjax.data.schema import packed_spec
from rmjax.evaluation.scoring import compile_scoring
from rmjax.models.counts import matrix_parameters
from rmjax.models.decoder import RewardModel
from rmjax.models.sharding import bytes_per_device, check_heads, sharded_shapes


@dataclasses.dataclass(frozen=True)
class Stored:
    """How weights are stored: in which dtype, that of activations too, and whether the layers' matrices are int8."""

    dtype: str
    int8: bool = False

    @property
    def flags(self) -> str:
        """The flags of rmjax.serve."""
        return f"--dtype={self.dtype}" + (" --int8" if self.int8 else "")


STORED = (Stored("float32"), Stored("bfloat16"), Stored("bfloat16", int8=True))


@dataclasses.dataclass(frozen=True)
class ScoringPlan:
    """The plan of a full batch of conversations of `max_length` tokens, one per row; bytes are per device.

    Attributes:
      flags: of rmjax.serve, with the mesh.
      stored: the weights.
      rows: of a batch, on all devices.
      fits: whether the peak is within the memory of a chip; None: its memory is unknown.
      memory: bytes of the parameters, the batch, and the rest: activations.
      flops: of a batch on all devices.
      collectives: {kind: bytes that a device receives in a batch}.
      seconds: of compute, memory and communication in a batch, which takes at least the longest.
    """

    topology: str
    devices: int
    flags: str
    stored: Stored
    rows: int
    fits: bool | None
    peak_bytes: int
    hbm_bytes: float
    memory: dict[str, int]
    flops: float
    collectives: dict[str, float]
    seconds: dict[str, float]
    batch_seconds: float
    conversations_per_second: float


def plan_scoring(
    model: RewardModel,
    topology: str,
    devices: Sequence[jax.Device],
    mesh: str,
    rows_per_device: int,
    max_length: int,
    kinds: Sequence[Stored] = STORED,
) -> Iterator[ScoringPlan]:
    """Yields the plan of serving a model with each of these kinds of stored weights, when it is compiled.

    Args:
      mesh: sizes of the axes, as the flag --mesh.

    Raises:
      InputError: the mesh fits neither devices nor model, or the program cannot be compiled.
    """
    chip, _ = parse_topology(topology)
    made = make_mesh(parse_sizes(mesh), devices, "--mesh")
    check_heads(model.decoder, made, "--mesh")
    for kind in kinds:
        stored = dataclasses.replace(model, dtype=kind.dtype, param_dtype=kind.dtype, frozen_dtype="")
        flags = f"{kind.flags} --mesh={mesh}" if mesh else kind.flags
        yield _plan(stored, topology, chip, made, flags, kind, rows_per_device, max_length)


def _plan(
    model: RewardModel,
    topology: str,
    chip: Chip,
    mesh: Mesh,
    flags: str,
    kind: Stored,
    rows_per_device: int,
    max_length: int,
) -> ScoringPlan:
    params = sharded_shapes(mesh, model.shapes(quantized=kind.int8), "--mesh")
    length = -(-max_length // mesh.shape["sequence"]) * mesh.shape["sequence"]
    rows, devices = rows_per_device * row_shards(mesh), mesh.devices.size
    sharding = NamedSharding(mesh, P(ROWS))
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype, _) in packed_spec(rows, length, length, 0, 1).items()
    }
    program = compile_program(
        lambda: compile_scoring(model, params, batch, mesh), chip, [model.decoder.num_layers], "the scoring program"
    )
    parameters, batch_bytes = bytes_per_device(params), bytes_per_device(batch)
    memory = {"parameters": parameters, "batch": batch_bytes}
    memory["activations"] = max(program.peak_bytes - sum(memory.values()), 0)
    decoder = model.decoder
    visible = rows * length * length / 2
    attention = 4.0 * decoder.num_layers * decoder.num_heads * decoder.head_dim * visible
    flops = 2 * matrix_parameters(model, "", used=True)[0] * rows * length + attention
    divide = lambda amount, rate: amount / rate if rate else 0.0
    across = bool(chip.node) and devices > chip.node
    bandwidth = chip.network_bandwidth if across else chip.link_bandwidth
    # float32 products run at a fraction of the peak that depends on the chip; the peak is a bound for them too.
    seconds = {
        "compute": divide(flops / devices, chip.flops),
        "memory": divide(parameters + memory["activations"], chip.memory_bandwidth),
        "communication": divide(sum(program.collectives.values()), bandwidth),
    }
    longest = max(seconds.values())
    return ScoringPlan(
        topology=topology,
        devices=devices,
        flags=flags,
        stored=kind,
        rows=rows,
        fits=program.peak_bytes <= program.available if program.available else None,
        peak_bytes=program.peak_bytes,
        hbm_bytes=program.available,
        memory=memory,
        flops=flops,
        collectives=program.collectives,
        seconds=seconds,
        batch_seconds=longest,
        conversations_per_second=divide(rows, longest),
    )


def describe_mesh(mesh: str, devices: int) -> str:
    """Returns the sizes of a mesh on so many devices, as text."""
    sizes = dict(zip(AXES, parse_sizes(mesh), strict=True))
    fixed = math.prod(size for size in sizes.values() if size != -1)
    shown = {axis: devices // fixed if size == -1 else size for axis, size in sizes.items()}
    return " x ".join(f"{axis} {size}" for axis, size in shown.items() if size != 1) or "one device"
