"""What a run writes about itself: metrics.jsonl and its picture, TensorBoard, and a progress bar."""

import json
import os
import sys

import tensorboardX
import tqdm

from rmjax.core.files import write_atomic
from rmjax.models.workdir import Workdir
from rmjax.training import figures


class MetricsLog:
    """metrics.jsonl, learning_curve.svg and tensorboard/ of a workdir: one line a step and split, none twice.

    Args:
      workdir: exists.
      step: where the run continues; lines of later steps, and a torn last line, are from work that is done again and
        are removed.
      quiet: write nothing; of several processes only the first writes.
    """

    def __init__(self, workdir: Workdir, step: int, quiet: bool = False):
        self._curve = workdir.learning_curve_file
        self.path = workdir.metrics_file
        self._quiet = quiet
        if quiet:
            return
        kept = [line for line in self._lines() if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomic(self.path, text)
        self._file = open(self.path, "a")  # noqa: SIM115 (closed by close)
        self._board = tensorboardX.SummaryWriter(
            str(workdir.tensorboard_directory), purge_step=step + 1 if step else None
        )

    def _lines(self) -> list[dict]:
        if not self.path.exists():
            return []
        lines = []
        for text in self.path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break  # torn by a kill; all that follows is later
        return lines

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Appends a line."""
        if self._quiet:
            return
        self._file.write(json.dumps({"step": step, "split": split, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def sync(self) -> None:
        """Puts all lines on disk and draws them: called before a checkpoint that they belong to."""
        if self._quiet:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()
        write_atomic(self._curve, figures.draw(self._lines()))

    def close(self) -> None:
        """Closes the files."""
        if self._quiet:
            return
        self.sync()
        self._file.close()
        self._board.close()


class Progress:
    """A bar with rate, loss, accuracy and time left; silent on all processes but the first."""

    def __init__(self, steps: int, done: int, quiet: bool):
        # A log file gets a line every half minute; a terminal a live bar.
        interval = 0.2 if sys.stderr.isatty() else 30.0
        self._bar = tqdm.tqdm(
            total=steps,
            initial=done,
            desc="training",
            unit="step",
            disable=quiet,
            mininterval=interval,
            dynamic_ncols=True,
        )

    def update(self, metrics: dict[str, float]) -> None:
        """Moves on by one step."""
        accuracy = f"accuracy {metrics['accuracy']:.3f}, " if "accuracy" in metrics else ""
        rate = f"{metrics['comparisons_per_second']:.1f} comparisons/s"
        self._bar.set_postfix_str(f"loss {metrics['loss']:.4f}, {accuracy}{rate}", refresh=False)
        self._bar.update()

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if not self._bar.disable:
            self._bar.write(line)

    def close(self) -> None:
        """Leaves the bar where it is."""
        self._bar.close()
