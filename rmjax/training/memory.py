"""An estimate of the memory of a training run, before anything large is allocated.

Per device: the trained parameters in float32 and the others in the model's dtypes, the optimizer's moments, gradients
(twice if microbatches are accumulated), and activations. `rmjax.plan` has the compiler's figure instead, which takes a
compilation. Logits over the vocabulary are never made. docs/training.md compares estimates with measurements.

The activations that are kept for the backward pass, in elements per token and layer, by `model.remat`: `layer`: D, the
layer's input; `small`: 2 D + 2 N P + 2 H P + 2 F, further the outputs of attention, projections and MLP; `none`: three
times as much on CPU, 1.5 times on a GPU (both measured), and 2 N T with dense attention. One layer's `none` is needed
in any case.

Axis letters: T tokens of a row, D model, N query heads, H key/value heads, P head dimension, F MLP, L layers.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rmjax.core import memory, pytree
from rmjax.core.config import Config
from rmjax.core.mesh import make_mesh
from rmjax.data.packing.plan import BatchPlan
from rmjax.models import partition
from rmjax.models.attention import KERNELS, choose_kernel, row_multiple
from rmjax.models.decoder import RewardModel
from rmjax.models.lora import LoraConfig
from rmjax.models.partition import FEW, trains_head_only
from rmjax.models.sharding import bytes_per_device, mesh_platform
from rmjax.training.loop import intervals
from rmjax.training.objectives import Objective
from rmjax.training.optimizer import make_optimizer, make_schedule
from rmjax.training.step import Trainer

Parts = dict[str, float]  # bytes of each part
_ALL_ACTIVATIONS = {"gpu": 1.5}  # elements that `none` keeps over those of `small`
_ALL_ACTIVATIONS_ELSEWHERE = 3.0
_COMPILER = 0.3 * 2**30  # bytes that compilation and its programs add to a process
_RANK = 16  # of adapters that are proposed
_STORED: dict[str, dict[str, str]] = {  # how the weights beside them are stored
    "": {},
    ", config.model.param_dtype = bfloat16": {"param_dtype": "bfloat16"},
    ", config.model.frozen_dtype = int8": {"param_dtype": "bfloat16", "frozen_dtype": "int8"},
}
_MAX_SHOWN = 3  # changes
_CHECKPOINT = 1.5  # a checkpoint is written in the background from a copy of the state; half as much is in buffers


@dataclasses.dataclass(frozen=True)
class Shape:
    """What activations depend on.

    Attributes:
      rows: of a microbatch on a device.
      row_length: in tokens.
      accumulates: whether a step may have several microbatches.
      saves: whether a checkpoint is saved before the last step.
    """

    rows: int
    row_length: int
    accumulates: bool
    saves: bool


def shape_of(config: Config, plan: BatchPlan) -> Shape:
    """Returns the shape of a run."""
    saves = min(intervals(config, plan.num_steps)) < plan.num_steps
    return Shape(config.train.rows_per_device, plan.row_length, plan.sizes.microbatches > 1, saves)


def estimate(trainer: Trainer, shape: Shape) -> tuple[Parts, Parts]:
    """Returns the parts of a run's memory on each device, and those on the host for the devices of this process.

    The parts on CPU devices are on the host. Must be called with the trainer's mesh set.
    """
    model, mesh = trainer.model, trainer.mesh
    assert isinstance(model, RewardModel)
    state = trainer.abstract_state()
    trained = bytes_per_device(state["params"])
    moments = bytes_per_device(state["opt_state"])
    parts: Parts = {
        "parameters": trained + bytes_per_device(state["frozen"]),
        "moments": moments,
        "gradients": trained * (2 if shape.accumulates else 1),
        "activations": _activations(model, trainer.trainable, mesh, shape),
    }
    local = len(mesh.local_devices)
    host = {"checkpoint": _CHECKPOINT * (trained + moments) * local * shape.saves, "compiler": _COMPILER}
    if mesh.local_devices[0].platform == "cpu":
        parts["copies of weights"] = _copies_on_cpu(model, state)
        host = {name: size * local for name, size in parts.items()} | host
    return parts, host


def _activations(model: RewardModel, trainable: str, mesh: Mesh, shape: Shape) -> float:
    config, tensor = model.decoder, mesh.shape["tensor"]
    slots = shape.rows * shape.row_length / mesh.shape["sequence"]
    width = config.intermediate_size
    if config.num_experts:
        width = config.experts_per_token * (config.expert_size or config.intermediate_size) + config.shared_expert_size
    heads = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    matrices = 2 if config.mlp_gated else 1
    small = (2 + 2 * config.post_norms) * config.hidden_size + (heads + matrices * width) / tensor
    dense = choose_kernel(model.attention, shape.row_length) is KERNELS["dense"]
    scores = 2 * config.num_heads * shape.row_length / tensor if dense else 0.0
    whole = _ALL_ACTIVATIONS.get(mesh_platform(), _ALL_ACTIVATIONS_ELSEWHERE) * small + scores
    kept = {"none": whole, "small": small, "layer": float(config.hidden_size)}[model.remat]
    if trains_head_only(trainable, model):
        kept = 0.0
    return slots * (kept * config.num_layers + whole) * jnp.dtype(model.dtype).itemsize


def _copies_on_cpu(model: RewardModel, state: dict) -> float:
    """Returns the bytes of the weights that XLA copies before the loop over the layers on CPU.

    In bfloat16 it converts them, to bfloat16 and to float32; unrolled layers are slices.
    """
    size = lambda tree, item: sum(
        item(leaf) for path, leaf in pytree.flatten(tree).items() if "/layers/" in path and leaf.ndim > 2
    )
    copies = 0.0
    if model.dtype == "bfloat16":
        copies += size(state["params"], lambda leaf: 4 * leaf.size)
        copies += size(state["frozen"], lambda leaf: 8 * leaf.size if leaf.dtype == jnp.bfloat16 else 0)
    if model.scan_layers is False:
        stored = lambda leaf: leaf.size * leaf.dtype.itemsize
        copies += size(state["params"], stored) + size(state["frozen"], stored)
    shards = jax.tree.leaves(state["params"] or state["frozen"])
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in shards)
    return copies * bytes_per_device(shards) / whole if whole else 0.0


def check_state(config: Config, model: RewardModel, mesh: Mesh) -> None:
    """Raises InputError if the train state and one set of gradients alone do not fit; needs no data."""
    schedule = make_schedule(config.optimizer, max(config.train.steps, 1))
    optimizer = make_optimizer(config.optimizer, schedule, model.decoder.num_layers)
    trainable = partition.trainable_pattern(config)
    trainer = Trainer(model, Objective((), {}, ()), optimizer, schedule, 0.0, mesh, trainable)
    with jax.set_mesh(mesh):
        length = row_multiple()
        check(config, trainer, Shape(0, length, accumulates=False, saves=False), length, "training without activations")


def check(config: Config, trainer: Trainer, shape: Shape, longest: int, what: str = "training") -> list[str]:
    """Returns the line about the memory that a run needs, and a warning if that is near what is left.

    Args:
      longest: tokens of the longest tree.
      what: needs the memory, in messages.

    Raises:
      InputError: it does not fit; names what would.
    """
    device = trainer.mesh.local_devices[0]
    parts, host = estimate(trainer, shape)
    needs = [("memory", host, memory.host_memory())]
    if device.platform != "cpu":
        needs = [
            ("memory of each device", parts, memory.device_memory(device)),
            ("memory of the host", host, needs[0][2]),
        ]

    def fix() -> str:
        limits = [available for _, _, available in needs]
        fitting = []
        for text, other, changed in _changes(config, trainer, shape, longest):
            sizes = [sum(found.values()) for found in estimate(other, changed)][-len(limits) :]
            if all(limit is None or size <= limit.bytes for size, limit in zip(sizes, limits, strict=True)):
                fitting.append(f"{text} ({memory.gib(sizes[0])})")
        if fitting:
            return f"it would fit with {' or '.join(fitting[:_MAX_SHOWN])}"
        return "no setting was found with which it fits: use a smaller model, or more devices with config.mesh.fsdp"

    lines, warnings = [], []
    for name, needed, available in needs:
        left = f"; {memory.gib(available.bytes)} are left ({available.source})" if available else ""
        lines.append(f"{name}: about {memory.gib(sum(needed.values()))} ({memory.describe(needed)}){left}")
        if warning := memory.check(f"{what} ({name})", needed, available, fix):
            warnings.append(f"warning: {warning}")
    return [*lines, *warnings]


def _changes(config: Config, trainer: Trainer, shape: Shape, longest: int) -> Iterator[tuple[str, Trainer, Shape]]:
    """Yields changes of a run that need less memory, those that cost the least first."""
    model, replace = trainer.model, dataclasses.replace
    assert isinstance(model, RewardModel)
    longest += -longest % row_multiple()
    few, layer = {"config.train.rows_per_device = 1": replace(shape, rows=1)}, replace(model, remat="layer")
    if shape.row_length > longest:
        few[f"config.train.rows_per_device = 1 and config.data.row_length = {longest}"] = replace(
            shape, rows=1, row_length=longest
        )
    least, text = replace(shape, rows=1, row_length=min(longest, shape.row_length)), list(few)[-1]
    for change, smaller in few.items():
        yield change, trainer, smaller
    yield "config.model.remat = layer", replace(trainer, model=layer), shape
    yield f"config.model.remat = layer, {text}", replace(trainer, model=layer), least
    devices = trainer.mesh.devices
    if devices.size > 1 and trainer.mesh.shape["fsdp"] < devices.size:
        mesh = make_mesh((1, devices.size, 1, 1), list(devices.flat))
        yield "config.mesh.data = 1, config.mesh.fsdp = -1", replace(trainer, mesh=mesh), shape
        yield f"config.mesh.data = 1, config.mesh.fsdp = -1, {text}", replace(trainer, mesh=mesh), least
    if model.lora is None and not trainer.trainable:
        options = config.optimizer.copy_and_resolve_references()
        options.name = "adafactor"
        optimizer = make_optimizer(options, trainer.schedule, model.decoder.num_layers)
        small = replace(trainer, model=layer, optimizer=optimizer)
        yield f"config.optimizer.name = adafactor, config.model.remat = layer, {text}", small, least
        for more, dtypes in _STORED.items():
            adapted = replace(layer, lora=LoraConfig(_RANK, alpha=2.0 * _RANK), **dtypes)
            yield f"config.lora.rank = {_RANK}{more}, {text}", replace(trainer, model=adapted, trainable=FEW), least
