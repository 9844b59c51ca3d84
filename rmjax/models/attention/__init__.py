"""Attention over packed prefix trees: one module per kernel, each registered in `KERNELS`."""

import jax

from rmjax.models.attention.blocks import BLOCKS
from rmjax.models.attention.dense import DENSE
from rmjax.models.attention.mask import SAVED, Kernel, Mask, attend, make_mask, save_for_backward
from rmjax.models.attention.mosaic import MOSAIC
from rmjax.models.attention.pairs import LANES
from rmjax.models.attention.triton import TRITON
from rmjax.models.sharding import mesh_platform

__all__ = [
    "KERNELS",
    "SAVED",
    "Kernel",
    "Mask",
    "attend",
    "choose_kernel",
    "make_mask",
    "row_multiple",
    "save_for_backward",
]

KERNELS = {"dense": DENSE, "blocks": BLOCKS, "triton": TRITON, "mosaic": MOSAIC}

# Row length up to which `auto` chooses `dense`.
_DENSE_UP_TO = {"cpu": 256, "gpu": 0, "tpu": 2048}  # CPU: at 512 a layer took 1.25 times as long as with `blocks`


def row_multiple() -> int:
    """Returns the number of tokens of which rows should be multiples on the mesh set by `jax.set_mesh`."""
    shards = jax.sharding.get_abstract_mesh().shape.get("sequence", 1)
    return shards * (LANES if mesh_platform() == "tpu" else 1)


def choose_kernel(name: str, row_length: int) -> Kernel:
    """Returns the kernel called `name`; for `auto`, the faster one at this row length on the platform of the mesh."""
    if name == "auto":
        platform = mesh_platform()
        long = {"gpu": "triton", "tpu": "mosaic"}.get(platform, "blocks")
        name = "dense" if row_length <= _DENSE_UP_TO.get(platform, 2048) else long
    return KERNELS[name]
