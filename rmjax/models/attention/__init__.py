"""Attention over packed prefix trees: one module per kernel, each registered in `KERNELS`."""

from rmjax.models.attention.blocks import BLOCKS
from rmjax.models.attention.dense import DENSE
from rmjax.models.attention.mask import SAVED, Kernel, Mask, attend, make_mask, save_for_backward
from rmjax.models.sharding import mesh_platform

__all__ = ["KERNELS", "SAVED", "Kernel", "Mask", "attend", "choose_kernel", "make_mask", "save_for_backward"]

KERNELS = {"dense": DENSE, "blocks": BLOCKS}

# Row length up to which `auto` chooses `dense`.
_DENSE_UP_TO_ON_CPU = 256  # at 512 a layer took 1.25 times as long as with `blocks`
_DENSE_UP_TO = 2048  # not measured: large parallel products, as long as the scores fit into memory


def choose_kernel(name: str, row_length: int) -> Kernel:
    """Returns the kernel called `name`; for `auto`, the faster one at this row length on the platform of the mesh."""
    if name == "auto":
        limit = _DENSE_UP_TO_ON_CPU if mesh_platform() == "cpu" else _DENSE_UP_TO
        name = "dense" if row_length <= limit else "blocks"
    return KERNELS[name]
