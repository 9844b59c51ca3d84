"""Steps whose loss or gradient is not finite: kept for reproduction, and counted."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rmjax.core.errors import InputError
from rmjax.core.text import count_of
from rmjax.models.workdir import Workdir

_NAMES = 8  # comparisons that are named in a message


class NonFiniteSteps:
    """Counts the steps of a run that are skipped; an instance per run.

    Args:
      limit: `config.train.skip_non_finite`.
      count: steps that were skipped before the run was resumed.
    """

    def __init__(self, workdir: Workdir, limit: int, count: int):
        self._directory = workdir.path / "non_finite"
        self._limit, self._count = limit, count

    def check(
        self, step: int, metrics: Mapping[str, float], comparisons: Sequence[str], batch: Mapping[str, np.ndarray]
    ) -> str:
        """Returns a warning if the step was skipped; "" if its loss and gradient are finite.

        The batch of a step that is not finite is written to non_finite/step-N.npz in the workdir, with the names of its
        comparisons; by several processes each their part, to step-N-process-I.npz.

        Args:
          metrics: with `loss` and `grad_norm`.
          comparisons: `path:line` of each comparison of the step.
          batch: the arrays of this process.

        Raises:
          InputError: the loss or the gradient is not finite, and no more steps may be skipped.
        """
        name = next((name for name in ("loss", "grad_norm") if not np.isfinite(metrics[name])), "")
        if not name:
            return ""
        path = self._save(step, comparisons, batch)
        names = ", ".join(comparisons[:_NAMES]) + (", …" if len(comparisons) > _NAMES else "")
        what = f"step {step}: {name} is {metrics[name]}, not finite; the step's comparisons: {names} (arrays: {path})"
        if self._count == self._limit:
            after = f" after {count_of(self._limit, 'skipped step')}" if self._limit else ""
            raise InputError(
                f"{what}; the run ends{after}: lower config.optimizer.learning_rate, check these records, or let "
                "config.train.skip_non_finite leave out such steps. Earlier checkpoints are not affected",
                page="docs/troubleshooting.md#loss-or-gradient-is-nan",
            )
        self._count += 1
        return f"warning: {what}; the step is skipped, {self._count} of at most {self._limit}"

    @property
    def count(self) -> int:
        """Steps of the run that were skipped."""
        return self._count

    def _save(self, step: int, comparisons: Sequence[str], batch: Mapping[str, np.ndarray]) -> str:
        part = f"-process-{jax.process_index()}" if jax.process_count() > 1 else ""
        path = self._directory / f"step-{step:08d}{part}.npz"
        try:
            self._directory.mkdir(exist_ok=True)
            arrays: dict[str, Any] = {"comparisons": np.array(comparisons), **batch}
            np.savez_compressed(path, **arrays)
        except OSError as error:  # the message about the step matters more
            return f"not kept, {error.strerror}"
        return str(path)
