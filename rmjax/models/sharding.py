"""Sharding rules: the PartitionSpec of every parameter and of the optimizer's moments."""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rmjax.core import pytree
from rmjax.core.errors import InputError

# (path regex, PartitionSpec) over the whole train state: parameters and, at paths that end alike, the optimizer's
# moments. L, the stacked layers, is never split: the scan goes over it.
STATE_RULES: tuple[tuple[str, P], ...] = (
    (r"decoder/embedding/weight$", P(None, ("fsdp", "tensor"))),  # [V, D]; V is often odd
    (r"attention/(query|key|value)/kernel$", P(None, "fsdp", "tensor")),  # [L, D, heads * P]
    (r"attention/(query|key|value)/bias$", P(None, "tensor")),  # [L, heads * P]
    (r"attention/output/kernel$", P(None, "tensor", "fsdp")),  # [L, N * P, D]
    (r"attention/output/bias$", P(None, None)),  # [L, D]
    (r"mlp/(gate|up)/kernel$", P(None, "fsdp", "tensor")),  # [L, D, F]
    (r"mlp/(gate|up)/bias$", P(None, "tensor")),  # [L, F]
    (r"mlp/down/kernel$", P(None, "tensor", "fsdp")),  # [L, F, D]
    (r"mlp/down/bias$", P(None, None)),  # [L, D]
    (r"norm/scale$", P()),  # [L, D] or [D]
    (r"head/kernel$", P()),  # [D, A]
    (r"(^|/)(step|count)$", P()),  # counters
)


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """Returns the NamedSharding of every leaf of `abstract_state` by `STATE_RULES`.

    Raises:
      InputError: a leaf matches no rule or several, or a dimension is not divisible by its mesh axis.
    """

    def sharding(path: str, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        spec = pytree.match_one(STATE_RULES, path, "sharding")
        for size, entry in zip(leaf.shape, spec, strict=False):
            axes = (entry,) if isinstance(entry, str) else entry or ()
            parts = math.prod(mesh.shape[axis] for axis in axes)
            if size % parts:
                raise InputError(
                    f"config.mesh: {' x '.join(axes)} is {parts}, which does not divide a dimension of "
                    f"{path} {leaf.shape}; choose a divisor of {size}"
                )
        return NamedSharding(mesh, spec)

    return pytree.map_paths(sharding, abstract_state)
