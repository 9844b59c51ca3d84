"""Scores a file offline, resumably.

    python -m rmjax.score --model=PATH --input=FILE --output=FILE

Writes one JSON line per record, in input order: the record's own fields and `rewards`, or `error` where it cannot be
scored; then the exit status is 1. With --best_of a record of several responses gets `best` too, the index of the one
with the highest reward (the first is 0). The same command continues a file that was begun with the same model and
input.

Several processes, one a host, score together: the same command on each, with JAX_COORDINATOR_ADDRESS=HOST:PORT of the
first, and JAX_NUM_PROCESSES and JAX_PROCESS_ID where no scheduler says them. All read the model and the input; the
first alone writes and prints.
"""

import pathlib
import sys
from collections.abc import Sequence

import jax
from absl import flags

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.evaluation.score_file import score_file

_MODEL = flags.DEFINE_string("model", "", "Artifact, Hugging Face directory with a head, or workdir.")
_INPUT = flags.DEFINE_string("input", "", "A JSONL file (.gz too): pairs, text or messages, labelled or not.")
_FORMAT = flags.DEFINE_string("format", "auto", "The input's format.")
_STRINGS = flags.DEFINE_enum("strings", None, ["joined", "chat"], "Strings as one text or as messages; the model's.")
_COLUMNS = flags.DEFINE_list("columns", [], "Fields to rename, old=new each, by commas.")
_OUTPUT = flags.DEFINE_string("output", "", "The file to write, or to continue.")
_MAX_LENGTH = flags.DEFINE_integer("max_length", 0, "Longest conversation in tokens; 0: the model's.")
_ROWS = flags.DEFINE_integer("rows_per_device", 0, "Rows of a batch on each device; 0: by the kind of device.")
_BEST_OF = flags.DEFINE_bool("best_of", False, "Adds `best`: which of a record's responses has the highest reward.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of activations.")


def main(_: Sequence[str]) -> None:
    """Scores as the flags say."""
    if not _MODEL.value or not _INPUT.value or not _OUTPUT.value:
        raise InputError("--model, --input and --output are all needed")
    program.join_processes()
    pipeline = load_pipeline(
        _MODEL.value, max_length=_MAX_LENGTH.value, rows_per_device=_ROWS.value, dtype=_DTYPE.value
    ).with_data_options(_FORMAT.value, _COLUMNS.value, _STRINGS.value)
    lines, errors = score_file(pipeline, _INPUT.value, pathlib.Path(_OUTPUT.value), best_of=_BEST_OF.value)
    print(f"{_OUTPUT.value}: {lines - errors:,} of {lines:,} records scored")
    if errors:
        if jax.process_index() == 0:
            print(f"error: {errors:,} records could not be scored; see `error` in their lines", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    program.use_huge_pages()
    program.run(main)
