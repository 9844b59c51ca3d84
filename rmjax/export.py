"""Exports a workdir's best checkpoint as a serving artifact.

python -m rmjax.export --workdir=DIR --output=DIR
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.training.export import export

_WORKDIR = flags.DEFINE_string("workdir", "", "A training run's directory.")
_OUTPUT = flags.DEFINE_string("output", "", "The artifact's directory; must not exist, or be empty.")
_MERGE = flags.DEFINE_list("merge", [], "attribute=weight by commas: one reward of several attributes.")
_STANDARDIZE = flags.DEFINE_bool("standardize", False, "Rewards of mean 0 and std 1 over the validation data.")


def main(_: Sequence[str]) -> None:
    """Exports as the flags say."""
    if not _WORKDIR.value or not _OUTPUT.value:
        raise InputError("--workdir and --output are both needed")
    export(
        pathlib.Path(_WORKDIR.value), pathlib.Path(_OUTPUT.value), merge=_MERGE.value, standardize=_STANDARDIZE.value
    )
    print(f"wrote {_OUTPUT.value}; serve it with: python -m rmjax.serve --model={_OUTPUT.value} --grpc_port=8001")


if __name__ == "__main__":
    program.run(main)
