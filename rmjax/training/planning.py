"""Plans of configurations: the lengths of their data, and the changes that are tried."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from rmjax.core.chips import parse_topology
from rmjax.core.config import Config
from rmjax.core.mesh import AXES, make_mesh, row_shards
from rmjax.data.packing.plan import choose_row_length, training_plan
from rmjax.models.attention import row_multiple
from rmjax.training import datasets
from rmjax.training.compilation import StepShape, make_trainer
from rmjax.training.plan import Plan, Work, make_plan

_READOUTS = 2  # of a comparison, where there is no data to count them
_REMATS = ("small", "layer")


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Unique tokens, readouts and edges of each comparison, int [n]."""

    tokens: np.ndarray
    readouts: np.ndarray | None = None
    edges: np.ndarray | None = None


def read_lengths(config: Config) -> tuple[Lengths, int]:
    """Returns the lengths of the training data of a configuration, and the size of the tokenizer's vocabulary."""
    tokenizer = datasets.load_tokenizer(config)
    sources = {split: config.data[split] for split in datasets.SPLITS}
    training, _, _ = datasets.load(config, sources, tokenizer, print, progress=True)
    return Lengths(training.lengths, training.readout_counts, training.edge_counts), len(tokenizer)


def plan_config(
    config: Config, topology: str, devices: Sequence[jax.Device], lengths: Lengths, vocab_size: int
) -> Plan:
    """Returns the plan of a configuration.

    Raises:
      InputError: the mesh does not fit the devices, or the step cannot be compiled.
    """
    chip, _ = parse_topology(topology)
    mesh = make_mesh([config.mesh[axis] for axis in AXES], devices)
    rows = config.train.rows_per_device * row_shards(mesh)
    with jax.set_mesh(mesh):
        multiple = row_multiple()
    tokens = lengths.tokens
    counts = [
        np.full(len(tokens), _READOUTS) if given is None else given for given in (lengths.readouts, lengths.edges)
    ]
    row_length = config.data.row_length or choose_row_length(tokens, config.train.batch_size, rows, multiple)
    plan = training_plan(
        tokens,
        *counts,
        batch_size=config.train.batch_size,
        steps=config.train.steps,
        epochs=config.train.epochs,
        seed=config.train.seed if config.data.shuffle else None,
        mixture=(),
        row_length=row_length,
        short_length=0,
        microbatch_rows=rows,
    )
    sizes, steps = plan.sizes, plan.num_steps
    shape = StepShape(row_length, sizes.microbatches, sizes.readouts, max(sizes.edges, 1))
    # Of a comparison, a token attends to half of its conversation on average; two responses share about half of it.
    visible = float((tokens.astype(np.float64) ** 2).mean()) / 2 * config.train.batch_size
    work = Work(sizes.tokens / steps, visible, config.train.batch_size, steps)
    trainer = make_trainer(config, mesh, vocab_size)
    slots = math.ceil(plan.padded_tokens(range(steps)) / steps)
    return make_plan(trainer, topology, chip, config.train.rows_per_device, shape, work, slots)


def alternatives(config: Config, devices: int) -> Iterator[tuple[str, Config]]:
    """Yields changes of a configuration that need less memory, those that cost the least first."""
    rows, remat, fsdp = config.train.rows_per_device, config.model.remat, config.mesh.fsdp
    halved = [1 << i for i in reversed(range(rows.bit_length() - 1))] if rows > 1 else []
    for size in halved:
        yield _changed(config, {"train.rows_per_device": size})
    sharded = {"mesh.data": 1, "mesh.fsdp": devices // (config.mesh.tensor * config.mesh.sequence)}
    spread = fsdp not in (-1, sharded["mesh.fsdp"])
    least = {"train.rows_per_device": 1} if rows > 1 else {}
    layer: dict[str, int | str] = {"model.remat": "layer"}
    if spread:
        yield _changed(config, sharded | least)
    if remat != "layer":
        yield _changed(config, layer | least)
        if spread:
            yield _changed(config, layer | sharded | least)


def sweep(config: Config, devices: int) -> Iterator[tuple[str, Config]]:
    """Yields configurations with several meshes, rematerialization policies and rows per device."""
    tensors = [size for size in (1, 2, 4, 8) if devices % size == 0 and size <= devices]
    for tensor in tensors:
        rest = devices // tensor
        for fsdp in {rest, max(rest // 2, 1)}:
            mesh = {"mesh.data": rest // fsdp, "mesh.fsdp": fsdp, "mesh.tensor": tensor, "mesh.sequence": 1}
            for remat in _REMATS:
                for rows in (1, 2, 4):
                    yield _changed(config, mesh | {"model.remat": remat, "train.rows_per_device": rows})


def _changed(config: Config, values: Mapping[str, int | str]) -> tuple[str, Config]:
    changed = config.copy_and_resolve_references()
    for key, value in values.items():
        section, name = key.split(".")
        changed[section][name] = value
    return ", ".join(f"{key} = {value}" for key, value in values.items()), changed
