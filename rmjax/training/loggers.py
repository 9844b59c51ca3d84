"""Loggers of metrics that `config.train.loggers` chooses, whose packages are imported only then."""

import importlib
import os
import uuid
from collections.abc import Callable, Sequence
from types import ModuleType

from rmjax.core.errors import InputError
from rmjax.core.files import read_json, write_atomic
from rmjax.models.workdir import Workdir
from rmjax.training.logging import MetricsWriter, OpenWriter


class WandbWriter(MetricsWriter):
    """Weights & Biases: a run with the configuration, and a metric `SPLIT/METRIC` over `step` for each metric.

    The run's identifier is in `wandb_id` of the workdir, so that a resumed run continues it; its steps after the
    checkpoint are then there twice. Project, entity and mode are set by wandb's variables WANDB_PROJECT (otherwise
    `rmjax`), WANDB_ENTITY and WANDB_MODE.
    """

    def __init__(self, workdir: Workdir, step: int):
        file = workdir.path / "wandb_id"
        if step == 0 or not file.exists():
            write_atomic(file, uuid.uuid4().hex)
        options = {"name": workdir.path.name, "id": file.read_text(), "resume": "allow", "dir": str(workdir.path)}
        project, config = os.environ.get("WANDB_PROJECT", "rmjax"), read_json(workdir.config_file)
        wandb = _import("wandb")
        try:
            self._run = wandb.init(project=project, config=config, **options)
        except Exception as error:  # wandb's own, which differ between versions
            raise InputError(
                f"config.train.loggers holds 'wandb', which cannot start: {' '.join(str(error).split())[:300]}; log in "
                "with `wandb login`, or set WANDB_MODE=offline"
            ) from error
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        self._run.log({f"{split}/{name}": value for name, value in metrics.items()} | {"step": step})

    def close(self) -> None:
        self._run.finish()


LOGGERS: dict[str, Callable[..., MetricsWriter]] = {"wandb": WandbWriter}  # by the name of the package


def check(names: Sequence[str]) -> None:
    """Raises InputError if a logger is unknown, or its package is not installed."""
    for name in names:
        if name not in LOGGERS:
            raise InputError(f"config.train.loggers holds {name!r}; choose from {', '.join(LOGGERS)}")
        _import(name)


def find(names: Sequence[str]) -> list[OpenWriter]:
    """Returns the functions that open the loggers `names`, which `check` has accepted."""
    return [LOGGERS[name] for name in names]


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"config.train.loggers holds {name!r}, and the package is not installed ({error}): pip install {name}, or "
            "leave it out; metrics.jsonl and TensorBoard need nothing"
        ) from error
