"""Data loader: the arrays of the batch plan's steps, prefetched by Grain."""

from typing import Any, Protocol

import grain
import numpy as np

from rmjax.data.packing.plan import BatchPlan
from rmjax.data.packing.rows import fill_rows
from rmjax.data.schema import Tree, packed_spec

StepArrays = dict[str, Any]  # see `materialize`


class Dataset(Protocol):
    """What the loader needs of a dataset; see `TokenizedDataset`."""

    @property
    def attributes(self) -> tuple[str, ...]: ...

    def tree(self, i: int) -> Tree: ...

    def model_inputs(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...


def materialize(dataset: Dataset, plan: BatchPlan, step: int, rows: np.ndarray) -> StepArrays:
    """Returns the arrays of a step: the plan's rows as M microbatches of B rows.

    Args:
      rows: indices of the rows of a microbatch to fill, ascending; a host fills only the rows of its own devices.

    Returns:
      `batch`: {name: [M, len(rows), ...]} as in `packed_spec`, see also `TokenizedDataset.model_inputs`;
      `microbatches`: int32 [2], see `BatchPlan.microbatches`.
    """
    sizes, packed = plan.sizes, plan.rows(step)
    edges, attributes = max(sizes.edges, 1), len(dataset.attributes)
    spec = packed_spec(len(rows), plan.row_length, sizes.readouts, edges, attributes, comparisons=True)
    microbatches = []
    for first in range(0, sizes.microbatches * plan.microbatch_rows, plan.microbatch_rows):
        chosen = [packed[first + row] if first + row < len(packed) else [] for row in rows]
        microbatches.append(fill_rows([[dataset.tree(i) for i in row] for row in chosen], spec))
        for b, row in enumerate(chosen):
            indices = np.array([0, *row], np.int32)  # group 0: unused
            microbatches[-1]["readout_comparison"][b] = indices[microbatches[-1]["readout_group"][b]]
    batch = {name: np.stack([microbatch[name] for microbatch in microbatches]) for name in spec}
    return {"batch": dataset.model_inputs(batch), "microbatches": plan.microbatches(step)}


def make_iterator(dataset: Dataset, plan: BatchPlan, rows: np.ndarray) -> grain.DatasetIterator:
    """Returns an iterator over the plan's steps that prefetches a few with threads.

    Its whole state is {"next_index": step}, which can be saved and restored.
    """
    steps = grain.MapDataset.range(plan.num_steps)
    steps = steps.map(lambda step: materialize(dataset, plan, int(step), rows))
    return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))
