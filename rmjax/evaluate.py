"""Measures a model on labelled data.

    python -m rmjax.evaluate --model=PATH --data=SOURCE --output=DIR

Writes metrics.json, predictions.jsonl and report.html, and prints the headline table.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.evaluation.evaluation import evaluate, read_labelled
from rmjax.evaluation.pipeline import load_pipeline

_MODEL = flags.DEFINE_string("model", "", "Artifact, Hugging Face directory with a head, or workdir.")
_DATA = flags.DEFINE_list("data", [], "Files, globs, hub names, by commas, or name=path; or `synthetic`.")
_OUTPUT = flags.DEFINE_string("output", "", "The directory to write to.")
_FORMAT = flags.DEFINE_string("format", "auto", "The data's format.")
_STRINGS = flags.DEFINE_enum("strings", None, ["joined", "chat"], "Strings as one text or as messages; the model's.")
_COLUMNS = flags.DEFINE_list("columns", [], "Fields to rename, old=new each, by commas.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Take the first so many comparisons; 0: all.", lower_bound=0)
_ON_BAD = flags.DEFINE_enum("on_bad_record", "error", ["error", "skip"], "What a record that cannot be read does.")
_MAX_LENGTH = flags.DEFINE_integer("max_length", 0, "Longest conversation in tokens, longer are counted; 0: model's.")
_ROWS = flags.DEFINE_integer("rows_per_device", 0, "Rows of a batch on each device; 0: by the kind of device.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of activations.")


def main(_: Sequence[str]) -> None:
    """Evaluates as the flags say."""
    if not _MODEL.value or not _DATA.value or not _OUTPUT.value:
        raise InputError("--model, --data and --output are all needed")
    pipeline = load_pipeline(
        _MODEL.value, max_length=_MAX_LENGTH.value, rows_per_device=_ROWS.value, dtype=_DTYPE.value
    ).with_data_options(_FORMAT.value, _COLUMNS.value, _STRINGS.value)
    items = read_labelled(_DATA.value, pipeline.options, limit=_LIMIT.value, on_bad_record=_ON_BAD.value)
    headline = evaluate(
        pipeline, items, pathlib.Path(_OUTPUT.value), title=f"{_MODEL.value} on {','.join(_DATA.value)}"
    )
    width = max(len(name) for name, _ in headline)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in headline))
    print(f"wrote {_OUTPUT.value}/ (metrics.json, predictions.jsonl, report.html)")


if __name__ == "__main__":
    program.use_huge_pages()
    program.run(main)
