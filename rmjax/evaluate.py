"""Evaluates a reward model on labelled data.

    python -m rmjax.evaluate --model=PATH --data=SOURCE --output=DIR

Writes metrics.json, predictions.jsonl and report.html, and prints the main metrics.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline

_MODEL = flags.DEFINE_string("model", "", "Artifact, Hugging Face directory with a reward head, or workdir.")
_DATA = flags.DEFINE_list("data", [], "Comma-separated files, globs, hub names or name=path; or `synthetic`.")
_OUTPUT = flags.DEFINE_string("output", "", "Directory for the results.")
_FORMAT = flags.DEFINE_string("format", "auto", "Record format; auto: detected.")
_STRINGS = flags.DEFINE_enum("strings", None, ["joined", "chat"], "Prompt format of strings; default: the model's.")
_COLUMNS = flags.DEFINE_list("columns", [], "Fields to rename, comma-separated old=new.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Maximum number of comparisons; 0: no limit.", lower_bound=0)
_ON_BAD = flags.DEFINE_enum("on_bad_record", "error", ["error", "skip"], "Handling of records that cannot be read.")
_MAX_LENGTH = flags.DEFINE_integer("max_length", 0, "Maximum length in tokens; longer: not scored; 0: the model's.")
_ROWS = flags.DEFINE_integer("rows_per_device", 0, "Rows per batch on each device; 0: chosen by platform.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Data type of activations.")


def main(_: Sequence[str]) -> None:
    """Evaluates --model on --data."""
    if not _MODEL.value or not _DATA.value or not _OUTPUT.value:
        raise InputError("--model, --data and --output are required")
    pipeline = load_pipeline(
        _MODEL.value, max_length=_MAX_LENGTH.value, rows_per_device=_ROWS.value, dtype=_DTYPE.value
    ).with_data_options(_FORMAT.value, _COLUMNS.value, _STRINGS.value)
    items = read_evaluation_data(_DATA.value, pipeline.options, limit=_LIMIT.value, on_bad_record=_ON_BAD.value)
    title = f"{_MODEL.value} on {','.join(_DATA.value)}"
    headline = evaluate(pipeline, items, pathlib.Path(_OUTPUT.value), title=title)
    width = max(len(name) for name, _ in headline)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in headline))
    print(f"wrote {_OUTPUT.value}/ (metrics.json, predictions.jsonl, report.html)")


if __name__ == "__main__":
    program.use_huge_pages()
    program.run(main)
