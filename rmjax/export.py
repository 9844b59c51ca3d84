"""Exports the best checkpoint of a workdir as a serving artifact, or its adapters for the PEFT library.

python -m rmjax.export --workdir=DIR --output=DIR [--peft]
"""

import pathlib
from collections.abc import Sequence

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.models.workdir import Workdir
from rmjax.training.export import export

FLAGS = program.Flags()
_WORKDIR = FLAGS.string("workdir", "", "Workdir of a training run.")
_OUTPUT = FLAGS.string("output", "", "Directory of the artifact; new or empty.")
_MERGE = FLAGS.list("merge", [], "Merge attributes into one reward: comma-separated attribute=weight.")
_STANDARDIZE = FLAGS.bool("standardize", False, "Standardize rewards (mean 0, std 1) over the validation data.")
_PEFT = FLAGS.bool("peft", False, "Write the adapters and the head alone, for the PEFT library.")


def main(_: Sequence[str]) -> None:
    """Exports --workdir to --output."""
    if not _WORKDIR.value or not _OUTPUT.value:
        raise InputError("--workdir and --output are required")
    workdir, output = Workdir(pathlib.Path(_WORKDIR.value)), pathlib.Path(_OUTPUT.value)
    if not workdir.is_workdir:
        raise InputError(f"{workdir}: not a workdir of rmjax.train ({workdir.model_file.name} is missing)")
    metadata = export(workdir.path, output, merge=_MERGE.value, standardize=_STANDARDIZE.value, peft=_PEFT.value)
    if token := metadata.get("added_padding_token"):
        print(f"note: the tokenizer has no token to pad with; {token} was added, and a row to the embedding")
    if metadata.get("transformers_class") is None:
        print(
            "note: transformers has no sequence classifier of this family: its AutoModel loads the decoder, to which "
            "score.weight is to be applied; rmjax evaluates, scores and serves the artifact as any other"
        )
    shift = metadata["transformers_shift"]
    if any(shift):
        values = ", ".join(f"{name} {value:+.6g}" for name, value in zip(metadata["attributes"], shift, strict=True))
        print(f"note: rewards are the logits of transformers plus a shift (transformers_shift in rmjax.json): {values}")
    print(f"wrote {_OUTPUT.value}; serve it with: python -m rmjax.serve --model={_OUTPUT.value} --grpc_port=8001")


if __name__ == "__main__":
    program.run(main, FLAGS)
