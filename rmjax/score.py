"""Scores a file offline; an interrupted run can be resumed.

    python -m rmjax.score --model=PATH --input=FILE --output=FILE

Writes one JSON line per record, in input order: the fields of the record and `rewards`, or `error` if it cannot be
scored; the exit status is then 1. With --best_of, a record of several responses also gets `best`, the index (from 0) of
the response with the highest reward. The same command resumes an output file, given the same model and input.

Multi-host: run the same command on each host, with JAX_COORDINATOR_ADDRESS=HOST:PORT of the first, and with
JAX_NUM_PROCESSES and JAX_PROCESS_ID where no scheduler sets them. All processes read the model and the input; only the
first writes and prints.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import jax

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.core.text import count_of
from rmjax.data.records.formats import find_format
from rmjax.evaluation.pipeline import describe_model, load_pipeline
from rmjax.evaluation.score_file import score_file

FLAGS = program.Flags()
_OPTIONS = {f"data.{name}": f"--{name}" for name in ("format", "strings", "columns", "max_length", "template_date")}
_MODEL = FLAGS.string("model", "", "Artifact, Hugging Face directory with a reward head, or workdir.")
_INPUT = FLAGS.string("input", "", "JSONL file (also .gz) of pairs, texts or messages, with or without labels.")
_FORMAT = FLAGS.string("format", "auto", "Record format, or a Python file with one; auto: detected.")
_STRINGS = FLAGS.enum("strings", None, ["joined", "chat"], "Prompt format of strings; default: the model's.")
_COLUMNS = FLAGS.list("columns", [], "Fields to rename, comma-separated old=new; old=_: leave out.")
_OUTPUT = FLAGS.string("output", "", "File to write, or to continue.")
_MAX_LENGTH = FLAGS.integer("max_length", 0, "Maximum conversation length in tokens; 0: the model's.", lower_bound=0)
_ROWS = FLAGS.integer("rows_per_device", 0, "Rows per batch on each device; 0: chosen by platform.", lower_bound=0)
_BEST_OF = FLAGS.bool("best_of", False, "Best-of-N: add `best`, the index of the highest-reward response.")
_DATE = FLAGS.string("template_date", "", program.TEMPLATE_DATE_HELP)
_DTYPE = FLAGS.enum("dtype", "float32", ["float32", "bfloat16"], "Data type of activations.")


def main(_: Sequence[str]) -> None:
    """Scores the records of --input."""
    if not _MODEL.value or not _INPUT.value or not _OUTPUT.value:
        raise InputError("--model, --input and --output are required")
    find_format(_FORMAT.value)
    program.initialize_distributed()
    pipeline = load_pipeline(
        _MODEL.value,
        max_length=_MAX_LENGTH.value,
        rows_per_device=_ROWS.value,
        dtype=_DTYPE.value,
        template_date=_DATE.value,
    ).with_data_options(_FORMAT.value, _COLUMNS.value, _STRINGS.value)
    pipeline = dataclasses.replace(pipeline, option_names=_OPTIONS)
    print(describe_model(_MODEL.value, pipeline))
    lines, errors = score_file(pipeline, _INPUT.value, pathlib.Path(_OUTPUT.value), best_of=_BEST_OF.value)
    print(f"{_OUTPUT.value}: {lines - errors:,} of {count_of(lines, 'record')} scored")
    if errors:
        if jax.process_index() == 0:
            failed = count_of(errors, "record")
            print(f"error: {failed} could not be scored; see `error` in the output", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    program.use_huge_pages()
    program.run(main, FLAGS, options=_OPTIONS)
