"""Trains a reward model.

    python -m rmjax.train --config=configs/binary.py --workdir=DIR --config.train.batch_size=32

Resumes if DIR holds a checkpoint; without --workdir, a new directory runs/NAME-N is used. The configuration keys are
listed in docs/configuration.md.

Multi-host: run the same command on each host, with JAX_COORDINATOR_ADDRESS=HOST:PORT of the first and a --workdir on a
shared file system. Slurm, Open MPI, Kubernetes and TPU pods provide the number and index of the processes to JAX;
elsewhere set JAX_NUM_PROCESSES, and JAX_PROCESS_ID from 0. Only the first process logs and prints.
"""

import itertools
import os
import pathlib
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.training.experiment import train

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file; --config.section.key=value overrides.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory of the run, resumed if it exists; empty: runs/NAME-N.")


def main(_: Sequence[str]) -> None:
    """Trains the model of --config."""
    if _CONFIG.value is None:
        raise InputError("--config is missing; start with --config=configs/binary.py")
    if "JAX_COORDINATOR_ADDRESS" in os.environ and not _WORKDIR.value:  # checked before processes wait for each other
        raise InputError("--workdir is missing; a multi-host run needs one on a shared file system")
    program.initialize_distributed()
    config = _CONFIG.value
    try:
        config.keys()
    except OSError as error:  # ml_collections raises it on first use if the file could not be run
        raise InputError(" ".join(str(error).split())) from error
    train(config, pathlib.Path(_WORKDIR.value) if _WORKDIR.value else _new_workdir(config.name))


def _new_workdir(name: str) -> pathlib.Path:
    candidates = (pathlib.Path("runs") / f"{name}-{number}" for number in itertools.count(1))
    return next(path for path in candidates if not path.exists())


if __name__ == "__main__":
    program.use_huge_pages()
    program.run(main)
