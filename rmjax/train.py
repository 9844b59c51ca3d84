"""Trains a reward model.

    python -m rmjax.train --config=configs/binary.py --workdir=DIR --config.train.batch_size=32

Resumes if DIR holds a checkpoint; without --workdir, a new directory runs/NAME-N is used. The configuration keys are
listed in docs/configuration.md, and declared with a comment each in rmjax/core/config.py.

SIGTERM and Ctrl-C save a checkpoint after the present step and exit with 143 and 130; a second one exits at once.

Multi-host: run the same command on each host, with JAX_COORDINATOR_ADDRESS=HOST:PORT of the first and a --workdir on a
shared file system. Slurm, Open MPI, Kubernetes and TPU pods provide the number and index of the processes to JAX;
elsewhere set JAX_NUM_PROCESSES, and JAX_PROCESS_ID from 0. Only the first process logs and prints.
"""

import os
import sys
from collections.abc import Sequence

from rmjax.core import config_file, program
from rmjax.core.errors import InputError
from rmjax.models.workdir import Workdir
from rmjax.training.experiment import train

FLAGS = program.Flags()
_CONFIG = FLAGS.config("Configuration file; --config.section.key=value overrides.")
_WORKDIR = FLAGS.string(
    "workdir", "", "Directory or URL (gs://, s3://) of the run, resumed if it exists; empty: runs/NAME-N."
)


def main(_: Sequence[str]) -> None:
    """Trains the model of --config."""
    config = _CONFIG.value
    if config is None:
        raise InputError("--config is missing; start with --config=configs/binary.py")
    if "JAX_COORDINATOR_ADDRESS" in os.environ and not _WORKDIR.value:  # checked before processes wait for each other
        raise InputError("--workdir is missing; a multi-host run needs one on a shared file system")
    program.initialize_distributed()
    result = train(config, _WORKDIR.value or Workdir.unused(config.name).path)
    if result.signal:
        sys.exit(128 + result.signal)


if __name__ == "__main__":
    program.use_huge_pages()
    program.run(main, FLAGS, more_help=config_file.describe_files)
