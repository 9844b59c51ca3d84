"""Trains a reward model.

    python -m rmjax.train --config=configs/binary.py --workdir=DIR --config.train.batch_size=32

Resumes when DIR holds a checkpoint; without --workdir a new runs/NAME-N is made and named.

Several processes, one a host, train together: the same command on each, with JAX_COORDINATOR_ADDRESS=HOST:PORT of the
first and a --workdir that all of them see. Slurm, Open MPI, Kubernetes and TPU pods tell JAX how many there are and
which is which; elsewhere set JAX_NUM_PROCESSES, and JAX_PROCESS_ID from 0. The first process alone logs and prints.
"""

import os
import pathlib
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.training.experiment import train

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file under configs/; --config.section.key=value overrides."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Where the run is kept; it resumes there. Empty: a new runs/NAME-N.")


def main(_: Sequence[str]) -> None:
    """Trains as the flags say."""
    if _CONFIG.value is None:
        raise InputError("--config is missing; start with --config=configs/binary.py")
    if "JAX_COORDINATOR_ADDRESS" in os.environ and not _WORKDIR.value:  # before one waits for the others
        raise InputError("--workdir is missing; several processes need one that all of them see")
    program.join_processes()
    config = _CONFIG.value
    try:
        config.keys()
    except OSError as error:  # how ml_collections tells, on first use, that the file could not be run
        raise InputError(" ".join(str(error).split())) from error
    train(config, _workdir(_WORKDIR.value, config.name))


def _workdir(given: str, name: str) -> pathlib.Path:
    if given:
        return pathlib.Path(given)
    number = 1
    while (path := pathlib.Path("runs") / f"{name}-{number}").exists():
        number += 1
    return path


if __name__ == "__main__":
    program.use_huge_pages()
    program.run(main)
