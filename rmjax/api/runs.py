"""Training from Python."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from rmjax.api.data import Data, to_sources
from rmjax.core import config_file
from rmjax.core.config import Config
from rmjax.core.remote import is_remote
from rmjax.data.records.sources import Source
from rmjax.evaluation.figures import Figure
from rmjax.models.workdir import Workdir
from rmjax.training import experiment
from rmjax.training.figures import Series, add_points, draw
from rmjax.training.logging import OpenWriter, read_metrics
from rmjax.training.mirror import local_directory


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
      workdir: the directory of the run; `rmjax.load` loads its best checkpoint.
      step: the last step that was taken.
      stopped: whether a signal stopped the run before its end; the same call resumes it.
    """

    workdir: pathlib.Path
    step: int
    stopped: bool

    @property
    def best_step(self) -> int:
        """The step of the best checkpoint."""
        return Workdir(self.workdir).best_step()

    @property
    def metrics(self) -> dict[str, float]:
        """The validation metrics of the best checkpoint."""
        return Workdir(self.workdir).validation_metrics(self.best_step) or {}

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: `step`, `split` (train or validation), and metrics."""
        return read_metrics(Workdir(self.workdir).metrics_file, self.step)

    def plot(self) -> Figure:
        """Returns the learning curve: loss, accuracy and learning rate over the steps."""
        series: Series = {}
        for line in self.history:
            add_points(series, line["step"], line["split"], line)
        return Figure(draw(series))

    def __repr__(self) -> str:
        metrics = self.metrics  # read from disk
        shown = ", ".join(f"{name} {metrics[name]:.4f}" for name in ("loss", "accuracy") if name in metrics)
        return f"<rmjax run {self.workdir}: step {self.step}, best step {self.best_step}: {shown}>"


def train(
    config: Config | str,
    train: Data = None,
    validation: Data = None,
    workdir: str | pathlib.Path | None = None,
    *,
    writers: Sequence[OpenWriter] = (),
    verbose: bool = False,
) -> Run:
    """Trains a reward model, resuming if `workdir` holds a checkpoint of the same run.

    Args:
      config: such as `rmjax.configs.small()`, which is not changed, or a file, `configs/kwise.py:pretrained`.
      train, validation: data, instead of config.data.train and config.data.validation.
      workdir: directory of the run, or its URL in an object store, which gets what a local copy gets, the
        `Run`'s; default: a new runs/NAME-N.
      writers: of metrics, besides metrics.jsonl, TensorBoard and the learning curve.
      verbose: print what `python -m rmjax.train` prints, and show a progress bar.

    Raises:
      InputError: configuration, data, model and workdir do not fit together; the message says what to change.
    """
    config = config_file.load(config) if isinstance(config, str) else config.copy_and_resolve_references()
    sources: dict[str, list[str | Source]] = {}
    for split, data in (("train", train), ("validation", validation)):
        if data is not None:
            sources[split] = to_sources(data)
            config.data[split] = tuple(str(getattr(source, "location", source)) for source in sources[split])
    path = workdir if workdir is not None else Workdir.unused(config.name).path
    log = print if verbose else lambda line: None
    result = experiment.train(config, path, writers, sources=sources, log=log, progress=verbose)
    directory = local_directory(str(path)) if is_remote(path) else pathlib.Path(path)
    return Run(directory, result.step, result.stopped)
