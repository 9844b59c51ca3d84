"""Checks of a run before any data is read: its configuration and its workdir."""

from rmjax.core import config_checks
from rmjax.core.config import Config
from rmjax.core.errors import InputError
from rmjax.core.os_errors import check_writable
from rmjax.data.packing.order import check_weights
from rmjax.data.records.formats import find_format
from rmjax.models import checkpoint_files, partition
from rmjax.models.attention import KERNELS
from rmjax.models.workdir import Workdir
from rmjax.training import loggers, objectives, profiling

# Files of other directories than workdirs.
_OTHERS = {
    "rmjax.json": "a serving artifact",
    "*.safetensors": "a model",
    "pytorch_model*.bin": "a model",
    "report.html": "an evaluation",
}


def check_config(config: Config) -> None:
    """Raises InputError for values that are wrong whatever the data is."""
    config_checks.check(config)
    config_checks.check_choice("model.attention", config.model.attention, ("auto", *KERNELS))
    find_format(config.data.format)
    if config.data.weights:
        check_weights(config.data.weights, len(config.data.train))
    partition.trainable_pattern(config)
    objectives.check(config.objective)
    profiling.parse_steps(config.train.profile)
    loggers.check(config.train.loggers)


def check_workdir(workdir: Workdir, config: Config) -> None:
    """Raises InputError if the workdir cannot be used, or holds a run of another configuration."""
    path = workdir.path
    check_writable(path, "workdir")
    for pattern, kind in () if workdir.is_workdir else _OTHERS.items():
        if found := next(path.glob(pattern), None):
            raise InputError(f"workdir={path}: it holds {kind} ({found.name}), not a run; choose another workdir")
    if workdir.created and not workdir.is_workdir:
        raise InputError(f"workdir={path}: its config.json is not of a training run; choose another workdir")
    if not workdir.created and checkpoint_files.steps(workdir.checkpoint_directory):
        raise InputError(
            f"workdir={path}: it has checkpoints, but config.json is missing; restore the file, or choose another "
            "workdir"
        )
    if workdir.created:
        workdir.checked(path)
        config_checks.check_same_run(config, workdir.config_file)
