"""Exports the best checkpoint of a workdir as a serving artifact.

python -m rmjax.export --workdir=DIR --output=DIR
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.training.export import export

_WORKDIR = flags.DEFINE_string("workdir", "", "Workdir of a training run.")
_OUTPUT = flags.DEFINE_string("output", "", "Directory of the artifact; new or empty.")
_MERGE = flags.DEFINE_list("merge", [], "Merge attributes into one reward: comma-separated attribute=weight.")
_STANDARDIZE = flags.DEFINE_bool("standardize", False, "Standardize rewards (mean 0, std 1) over the validation data.")


def main(_: Sequence[str]) -> None:
    """Exports --workdir to --output."""
    if not _WORKDIR.value or not _OUTPUT.value:
        raise InputError("--workdir and --output are required")
    workdir, output = pathlib.Path(_WORKDIR.value), pathlib.Path(_OUTPUT.value)
    export(workdir, output, merge=_MERGE.value, standardize=_STANDARDIZE.value)
    print(f"wrote {_OUTPUT.value}; serve it with: python -m rmjax.serve --model={_OUTPUT.value} --grpc_port=8001")


if __name__ == "__main__":
    program.run(main)
