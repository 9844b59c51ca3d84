"""Writers of training metrics: JSON lines, TensorBoard, the learning curve; and the progress bar."""

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorboardX

from rmjax.core.files import write_atomic
from rmjax.core.progress import progress_bar, write_line
from rmjax.core.state_files import read_lines
from rmjax.models.workdir import Workdir
from rmjax.training import figures


class MetricsWriter:
    """Base class of backends that receive the metrics of a run, in the first process only.

    To add a backend, write a subclass whose constructor takes (workdir, step), and add it to `WRITERS` or pass it to
    `experiment.train(..., writers=[...])`. A run resumes after `step` steps and repeats later ones, so metrics of later
    steps that an earlier process wrote are stale. If `step` is 0, all are: the validation at step 0 is repeated too.
    """

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Adds the metrics of a step; `split` is train, validation, or skipped (`count`, so far in the run)."""
        raise NotImplementedError

    def flush(self) -> None:
        """Makes all metrics durable; called before each checkpoint is saved and before `close`."""

    def close(self) -> None:
        """Releases files and connections."""


def read_metrics(path: pathlib.Path, last_step: int) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl up to `last_step`, without an incomplete last line (the process was killed).

    Raises:
      InputError: another line is damaged.
    """
    return [line for line in read_lines(path, {"step": int, "split": str}) if line["step"] <= last_step]


def kept_metrics(path: pathlib.Path, step: int) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl that a run which resumes at `step` keeps."""
    return read_metrics(path, step) if step else []


def latest_validation(path: pathlib.Path, last_step: int) -> dict[str, float]:
    """Returns the metrics of the last validation up to `last_step` in metrics.jsonl; {} if there is none."""
    lines = [line for line in kept_metrics(path, last_step) if line["split"] == "validation"]
    return {name: value for name, value in lines[-1].items() if name not in ("step", "split")} if lines else {}


class JsonlWriter(MetricsWriter):
    """metrics.jsonl: a JSON object with `step`, `split` and the metrics per line; stale lines are removed."""

    def __init__(self, workdir: Workdir, step: int):
        lines = kept_metrics(workdir.metrics_file, step)
        write_atomic(workdir.metrics_file, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = open(workdir.metrics_file, "a")  # noqa: SIM115 (closed by close)

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
        self._file.flush()

    def flush(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter(MetricsWriter):
    """Event files with a scalar `SPLIT/METRIC` per metric; stale steps are purged by TensorBoard."""

    def __init__(self, workdir: Workdir, step: int):
        purge_step = step + 1 if step else 0
        self._board = tensorboardX.SummaryWriter(str(workdir.tensorboard_directory), purge_step=purge_step)

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def flush(self) -> None:
        self._board.flush()

    def close(self) -> None:
        self._board.close()


class LearningCurve(MetricsWriter):
    """learning_curve.svg: the figure of metrics.jsonl, drawn when flushed."""

    def __init__(self, workdir: Workdir, step: int):
        self._path = workdir.learning_curve_file
        self._series: figures.Series = {}
        self._drawn = False
        for line in kept_metrics(workdir.metrics_file, step):
            self.write(line["step"], line["split"], line)

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        figures.add_points(self._series, step, split, metrics)
        self._drawn = False

    def flush(self) -> None:
        if not self._drawn:
            write_atomic(self._path, figures.draw(self._series))
        self._drawn = True


OpenWriter = Callable[[Workdir, int], MetricsWriter]
WRITERS: tuple[OpenWriter, ...] = (JsonlWriter, TensorBoardWriter, LearningCurve)


class CompositeWriter(MetricsWriter):
    """Forwards metrics to several writers, in order."""

    def __init__(self, workdir: Workdir, step: int, writers: Sequence[OpenWriter] = WRITERS):
        self._writers = [open_writer(workdir, step) for open_writer in writers]

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, split, metrics)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        self.flush()
        for writer in self._writers:
            writer.close()


class ProgressBar:
    """A bar with rate, loss, accuracy and time left; lines are printed with `log`."""

    def __init__(self, steps: int, done: int, log: Callable[[str], object], disable: bool):
        self._bar, self._log = progress_bar(steps, "training", "step", initial=done, disable=disable), log

    def update(self, metrics: dict[str, float]) -> None:
        """Advances by one step and shows its metrics."""
        accuracy = f"accuracy {metrics['accuracy']:.3f}, " if "accuracy" in metrics else ""
        rate = f"{metrics['comparisons_per_second']:.1f} comparisons/s"
        self._bar.set_postfix_str(f"loss {metrics['loss']:.4f}, {accuracy}{rate}", refresh=False)
        self._bar.update()

    def print(self, line: str) -> None:
        """Prints a line above the bar."""
        write_line(self._log, line)

    def close(self) -> None:
        """Stops updating the bar and leaves it on the screen."""
        self._bar.close()
