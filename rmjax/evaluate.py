"""Evaluates a reward model on labelled data.

    python -m rmjax.evaluate --model=PATH --data=SOURCE --output=DIR

Writes metrics.json, predictions.jsonl and report.html, and prints the main metrics.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

from rmjax.core import locks, os_errors, program
from rmjax.core.errors import InputError
from rmjax.data.records.formats import find_format
from rmjax.data.records.formats.published import SAFETY_LABELS
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import describe_model, load_pipeline

FLAGS = program.Flags()
_OPTIONS = {  # configuration keys in messages
    **{
        f"data.{name}": f"--{name}"
        for name in ("format", "strings", "columns", "on_bad_record", "max_length", "template_date")
    },
    "data.label_field": "--label_field",
    "data.validation": "--data",
}
_MODEL = FLAGS.string("model", "", "Artifact, Hugging Face directory with a reward head, or workdir.")
_DATA = FLAGS.list("data", [], "Comma-separated files, globs, hub names or name=path; or `synthetic`.")
_OUTPUT = FLAGS.string("output", "", "Directory for the results.")
_FORMAT = FLAGS.string("format", "auto", "Record format, or a Python file with one; auto: detected.")
_STRINGS = FLAGS.enum("strings", None, ["joined", "chat"], "Prompt format of strings; default: the model's.")
_COLUMNS = FLAGS.list("columns", [], "Fields to rename, comma-separated old=new; old=_: leave out.")
_LABEL = FLAGS.enum("label_field", None, [*SAFETY_LABELS], "Label of PKU-SafeRLHF; default: the model's.")
_LIMIT = FLAGS.integer("limit", 0, "Maximum number of comparisons; 0: no limit.", lower_bound=0)
_ON_BAD = FLAGS.enum("on_bad_record", "error", ["error", "skip"], "Handling of records that cannot be read.")
_MAX_LENGTH = FLAGS.integer(
    "max_length", 0, "Maximum length in tokens; longer: not scored; 0: the model's.", lower_bound=0
)
_ROWS = FLAGS.integer("rows_per_device", 0, "Rows per batch on each device; 0: chosen by platform.", lower_bound=0)
_DATE = FLAGS.string("template_date", "", program.TEMPLATE_DATE_HELP)
_DTYPE = FLAGS.enum("dtype", "float32", ["float32", "bfloat16"], "Data type of activations.")
_MESH = FLAGS.string("mesh", "", program.MESH_HELP)
_INT8 = FLAGS.bool("int8", False, "Store the layers' matrices as int8, with a scale for each column.")


def main(_: Sequence[str]) -> None:
    """Evaluates --model on --data."""
    if not _MODEL.value or not _DATA.value or not _OUTPUT.value:
        raise InputError("--model, --data and --output are required")
    find_format(_FORMAT.value)
    output = pathlib.Path(_OUTPUT.value)
    with locks.hold(output, "--output", directory=True), os_errors.reported(output):
        pipeline = load_pipeline(
            _MODEL.value,
            max_length=_MAX_LENGTH.value,
            rows_per_device=_ROWS.value,
            dtype=_DTYPE.value,
            int8=_INT8.value,
            template_date=_DATE.value,
            mesh=_MESH.value,
            progress=True,
        ).with_data_options(_FORMAT.value, _COLUMNS.value, _STRINGS.value, _LABEL.value)
        pipeline = dataclasses.replace(pipeline, option_names=_OPTIONS)
        print(describe_model(_MODEL.value, pipeline))
        notes: list[str] = []
        items = read_evaluation_data(
            _DATA.value, pipeline.options, limit=_LIMIT.value, on_bad_record=_ON_BAD.value, log=notes.append
        )
        title = f"{_MODEL.value} on {','.join(_DATA.value)}"
        evaluation = evaluate(pipeline, items, title=title, notes=notes)
        evaluation.save(_OUTPUT.value)
    print(evaluation)
    print(f"wrote {_OUTPUT.value}/ (metrics.json, predictions.jsonl, report.html)")


if __name__ == "__main__":
    program.use_huge_pages()
    program.run(main, FLAGS, options=_OPTIONS)
