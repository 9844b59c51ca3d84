"""The train step compiled ahead of time, for devices that need not be there, without loading weights or data.

Axis letters: M microbatches, B rows of a microbatch, R readouts and E edges of a row.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rmjax.core.config import Config
from rmjax.core.mesh import ROWS, replicated, row_shards
from rmjax.core.readouts import is_mean
from rmjax.data.schema import PER_TOKEN, packed_spec
from rmjax.models import loading, partition, paths
from rmjax.models.architecture import HeadConfig
from rmjax.models.lora import LoraConfig
from rmjax.training.members import Members
from rmjax.training.objectives import make_objective
from rmjax.training.optimizer import make_optimizer, make_schedule
from rmjax.training.step import Trainer


@dataclasses.dataclass(frozen=True)
class StepShape:
    """The sizes of a step's arrays."""

    row_length: int  # tokens
    microbatches: int  # M
    readouts: int  # R
    edges: int  # E


def make_trainer(config: Config, mesh: Mesh, vocab_size: int) -> Trainer:
    """Returns the trainer of a configuration without data: the head has the attributes that the configuration names.

    Args:
      vocab_size: of a model without a path.
    """
    head = HeadConfig(tuple(config.objective.attributes) or ("reward",))  # `make_model` sets its members
    model = loading.make_model(config.model, vocab_size, head)
    decoder = model.decoder.for_length(config.data.max_length)
    lora, mean = LoraConfig.from_config(config.lora), is_mean(paths.readout_of(config))
    model = dataclasses.replace(model, decoder=decoder, lora=lora, mean_readout=mean)
    schedule = make_schedule(config.optimizer, max(config.train.steps, 1))
    optimizer = make_optimizer(config.optimizer, schedule, decoder.num_layers)
    objective = make_objective(config.objective, head)
    trainable = partition.trainable_pattern(config)
    clip, skip = config.optimizer.grad_clip, config.train.skip_non_finite > 0
    return Trainer(model, objective, optimizer, schedule, clip, mesh, trainable, skip, Members.from_config(config))


def compile_step(trainer: Trainer, rows_per_device: int, shape: StepShape) -> jax.stages.Compiled:
    """Returns the compiled train step on the mesh of a trainer; its devices may be those of a topology description.

    All microbatches have full rows: the branch for short microbatches has the same memory and collectives.
    """
    mesh, rows = trainer.mesh, rows_per_device * row_shards(trainer.mesh)
    attributes = len(trainer.model.head.attributes)
    spec = packed_spec(rows, shape.row_length, shape.readouts, shape.edges, attributes, comparisons=True)

    def leaf(name: str) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, P(None, ROWS, "sequence") if name in PER_TOKEN else P(None, ROWS))
        size, dtype, _ = spec[name]
        return jax.ShapeDtypeStruct((shape.microbatches, *size), dtype, sharding=sharding)

    microbatches = jax.ShapeDtypeStruct((2,), jnp.int32, sharding=replicated(mesh))
    with jax.set_mesh(mesh):
        step: Any = trainer.compile_step(0)  # a jitted function
        return step.lower(trainer.abstract_state(), {name: leaf(name) for name in spec}, microbatches).compile()
