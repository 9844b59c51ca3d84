"""The plan's steps, materialised ahead of the device by Grain."""

from typing import Any

import grain
import numpy as np

from rmjax.data.packing.plan import BatchPlan
from rmjax.data.packing.rows import fill_rows
from rmjax.data.schema import packed_spec
from rmjax.data.tokens.dataset import TokenizedDataset

Step = dict[str, Any]  # `batch`: arrays [M, B, ...], `microbatches`: see `BatchPlan.microbatches`


def materialise(dataset: TokenizedDataset, plan: BatchPlan, step: int, rows: np.ndarray) -> Step:
    """Returns the arrays of a step: the plan's rows laid out as M microbatches of B rows.

    Args:
      rows: which of a microbatch's rows to fill, sorted: a host fills only those that its devices hold.

    Returns:
      `batch`: {name: [M, len(rows), ...]} as in `packed_spec`; `microbatches`: int32 [2].
    """
    sizes, packed = plan.sizes, plan.rows(step)
    spec = packed_spec(len(rows), plan.row_length, sizes.readouts, max(sizes.edges, 1), len(dataset.attributes))
    micro = []
    for first in range(0, sizes.microbatches * plan.microbatch_rows, plan.microbatch_rows):
        wanted = [packed[first + row] if first + row < len(packed) else [] for row in rows]
        micro.append(fill_rows([[dataset.tree(i) for i in row] for row in wanted], spec))
    batch = {name: np.stack([m[name] for m in micro]) for name in spec}
    return {"batch": batch, "microbatches": plan.count(packed)}


def make_iterator(dataset: TokenizedDataset, plan: BatchPlan, rows: np.ndarray) -> grain.DatasetIterator:
    """Returns an iterator over the plan's steps; its state, {"next_index": step}, can be saved and set.

    A few steps are made ahead by threads; which step comes next is all of its state.
    """
    steps = grain.MapDataset.range(plan.num_steps)
    steps = steps.map(lambda step: materialise(dataset, plan, int(step), rows))
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))
