"""Sharding rules: the PartitionSpec of every parameter and of the optimizer's moments."""

import math
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rmjax.core import pytree
from rmjax.core.errors import InputError
from rmjax.models import int8, lora
from rmjax.models.architecture import DecoderConfig

# (path regex, PartitionSpec) for the whole train state: parameters, and the optimizer's moments, whose paths have the
# same endings. An adapter's matrices have the axes of the kernel beside them, and the rank, which is not sharded; int8
# values have those of the kernel that they represent, and their scales its last one. The axis L of the stacked layers
# is never sharded because `lax.scan` iterates over it.
STATE_RULES: tuple[tuple[str, P], ...] = (
    (r"embedding/weight$", P(None, ("fsdp", "tensor"))),  # [V, D] or [positions, D]; V is often odd
    (r"(?<!experts/)(query|key|value|gate|up)/kernel$", P(None, "fsdp", "tensor")),  # [L, D, heads * P] or [L, D, F]
    (r"experts/(gate|up)/kernel$", P(None, "tensor", "fsdp", None)),  # [L, E, D, F]
    (r"experts/down/kernel$", P(None, "tensor", None, "fsdp")),  # [L, E, F, D]
    (r"(router|shared_weight)/kernel$", P()),  # [L, D, E] or [L, D, 1]
    (r"(query|key|value|gate|up)/bias$", P(None, "tensor")),  # [L, heads * P] or [L, F]
    (r"(?<!experts/)(output|down)/kernel$", P(None, "tensor", "fsdp")),  # [L, N * P, D] or [L, F, D]
    (r"(output|down)/bias$", P(None, None)),  # [L, D]
    (r"norm/(scale|bias)$", P()),  # [L, D] or [D]
    # [D, K A]; with a hidden layer [H, K A], [D, H], [H]; a Laplace factor [D, D] and offset [D]
    (r"head/(kernel|hidden/kernel|hidden/bias|laplace/factor|laplace/offset)$", P()),
    (r"(^|/)(step|count|ns_coeffs)$", P()),  # counters, and constants of Muon
)


def _partition_spec(path: str, shape: tuple[int, ...]) -> P:
    kernel = re.sub(f"{lora.PATTERN}|{int8.PATTERN}", "/kernel", path)
    spec = pytree.match_one(STATE_RULES, kernel, "sharding")
    if path.endswith(lora.M) and len(shape) == 2 and shape[-1] > 1:
        return P(spec[0], spec[-1])
    if len(spec) > len(shape) or (len(shape) > 0 and shape[-1] == 1):
        return P()  # Adafactor's sums of rows and columns, and its placeholders
    if int8.is_part(path) and shape[-2] == 1:  # scales
        return P(*spec[:-2], None, spec[-1])
    if path.endswith(lora.A):
        return P(*spec[:-1], None)
    return P(*spec[:-2], None, spec[-1]) if path.endswith(lora.B) else spec


def state_shardings(mesh: Mesh, abstract_state: Any, name: str = "config.mesh") -> Any:
    """Returns the NamedSharding of every leaf of `abstract_state` by `STATE_RULES`.

    Args:
      name: of the option that gives the mesh, in errors.

    Raises:
      InputError: a leaf matches no rule or several, or a dimension is not divisible by its mesh axes.
    """

    def sharding(path: str, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        spec = _partition_spec(path, leaf.shape)
        for size, entry in zip(leaf.shape, spec, strict=False):
            axes = (entry,) if isinstance(entry, str) else entry or ()
            shards = math.prod(mesh.shape[axis] for axis in axes)
            if size % shards:
                raise InputError(
                    f"{name}: {' x '.join(axes)} is {shards}, which does not divide a dimension of "
                    f"{path} {leaf.shape}; choose a divisor of {size}"
                )
        return NamedSharding(mesh, spec)

    return pytree.map_with_path(sharding, abstract_state)


def sharded_shapes(mesh: Mesh, abstract_state: Any, name: str = "config.mesh") -> Any:
    """Returns `abstract_state` with the shardings of `state_shardings`: what a checkpoint is restored onto."""
    add = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(add, abstract_state, state_shardings(mesh, abstract_state, name))


def check_heads(decoder: DecoderConfig, mesh: Mesh, name: str = "config.mesh") -> None:
    """Raises InputError, which names the option of the mesh, if its axis `tensor` does not divide the model's heads."""
    tensor = mesh.shape["tensor"]
    for kind, count in (("query", decoder.num_heads), ("key/value", decoder.num_kv_heads)):
        if count % tensor:
            raise InputError(
                f"{name}: tensor is {tensor}, which does not divide the model's {count} {kind} heads; choose a "
                "common divisor of the numbers of query and key/value heads"
            )


def meshes(devices: int, num_kv_heads: int) -> Iterator[str]:
    """Yields meshes that shard the parameters of a model, those with the least communication first.

    >>> list(meshes(4, 2))
    ['tensor=2', 'tensor=2,fsdp=2', 'fsdp=2', 'fsdp=4']
    """
    sizes = [size for size in range(2, devices + 1) if devices % size == 0]
    tensors = [size for size in sizes if num_kv_heads % size == 0]
    for tensor in tensors:
        yield f"tensor={tensor}"
    for tensor in tensors[-1:]:
        for fsdp in sizes:
            if devices % (tensor * fsdp) == 0:
                yield f"tensor={tensor},fsdp={fsdp}"
    for fsdp in sizes:
        yield f"fsdp={fsdp}"


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes on one device of the leaves of a tree, which have shardings."""
    shard = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return sum(map(shard, jax.tree.leaves(tree)))


def mesh_platform() -> str:
    """Returns the platform (`cpu`, `gpu`, `tpu`) of the mesh set by `jax.set_mesh`; the default backend without one."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()
