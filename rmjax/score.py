"""Scores a file offline; an interrupted run can be resumed.

    python -m rmjax.score --model=PATH --input=FILE --output=FILE

Writes one JSON line per record, in input order: the fields of the record and `rewards`, or `error` if it cannot be
scored; the exit status is then 1. With --best_of, a record of several responses also gets `best`, the index (from 0) of
the response with the highest reward. The same command resumes an output file, given the same model, options and
input; OUTPUT.run.json records what they were.

Many machines without a connection: --shard=I/N scores the records I, I + N, I + 2N, … (from 0), for a job array, as
--shard=$SLURM_ARRAY_TASK_ID/8 --output=scores-$SLURM_ARRAY_TASK_ID.jsonl.

Multi-host: run the same command on each host, with JAX_COORDINATOR_ADDRESS=HOST:PORT of the first, and with
JAX_NUM_PROCESSES and JAX_PROCESS_ID where no scheduler sets them. All processes read the model and the input; only the
first writes and prints.
"""

import dataclasses
import pathlib
import re
import sys
from collections.abc import Sequence

import jax

from rmjax._model_flags import ModelFlags
from rmjax.core import locks, os_errors, program
from rmjax.core.errors import InputError
from rmjax.core.text import count_of
from rmjax.data.records.formats import find_format
from rmjax.evaluation.ensemble import load_models
from rmjax.evaluation.pipeline import describe_model
from rmjax.evaluation.score_file import score_file

FLAGS = program.Flags()
_OPTIONS = {f"data.{name}": f"--{name}" for name in ("format", "strings", "columns", "max_length", "template_date")}
_MODEL = FLAGS.string("model", "", "Artifact, Hugging Face directory with a head, or workdir; A,B,C: an ensemble.")
_INPUT = FLAGS.string("input", "", "JSONL file (also .gz) of pairs, texts or messages, with or without labels.")
_FORMAT = FLAGS.string("format", "auto", "Record format, or a Python file with one; auto: detected.")
_STRINGS = FLAGS.enum("strings", None, ["joined", "chat"], "Prompt format of strings; default: the model's.")
_COLUMNS = FLAGS.list("columns", [], "Fields to rename, comma-separated old=new; old=_: leave out.")
_OUTPUT = FLAGS.string("output", "", "File to write, or to continue.")
_SHARD = FLAGS.string("shard", "0/1", "I/N: score only every N-th record, from the I-th on (from 0); for job arrays.")
_BEST_OF = FLAGS.bool("best_of", False, "Best-of-N: add `best`, the index of the highest-reward response.")
_LOADING = ModelFlags(FLAGS, "Maximum conversation length in tokens; 0: the model's.")


def _parse_shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise InputError(f"--shard is {text!r}; expected I/N with I from 0 to N - 1, such as 0/8")
    return int(match[1]), int(match[2])


def main(_: Sequence[str]) -> None:
    """Scores the records of --input."""
    if not _MODEL.value or not _INPUT.value or not _OUTPUT.value:
        raise InputError("--model, --input and --output are required")
    find_format(_FORMAT.value)
    shard = _parse_shard(_SHARD.value)
    program.initialize_distributed()
    output = pathlib.Path(_OUTPUT.value)
    with locks.hold(output, "--output", directory=False), os_errors.reported(output):
        pipeline = load_models(_MODEL.value, **_LOADING.options())
        pipeline = pipeline.with_data_options(_FORMAT.value, _COLUMNS.value, _STRINGS.value)
        pipeline = dataclasses.replace(pipeline, option_names=_OPTIONS)
        print(describe_model(_MODEL.value, pipeline))
        lines, errors = score_file(pipeline, _INPUT.value, output, best_of=_BEST_OF.value, shard=shard)
    print(f"{_OUTPUT.value}: {lines - errors:,} of {count_of(lines, 'record')} scored")
    if errors:
        if jax.process_index() == 0:
            failed = count_of(errors, "record")
            print(f"error: {failed} could not be scored; see `error` in the output", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    program.use_huge_pages()
    program.run(main, FLAGS, options=_OPTIONS)
