"""Averages the weights of reward models of one architecture, and compares the average with them.

    python -m rmjax.average MODEL MODEL ... --output=DIR [--weights=W,W,...] [--data=SOURCE]

Models are artifacts or Hugging Face directories with a reward head. With --data, accuracy and 95 % interval of each
model and of the average are printed.
"""

import pathlib
import shlex
from collections.abc import Sequence

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.training.averaging import average

FLAGS = program.Flags(positional=True)
_OPTIONS = {"data.format": "--format", "data.validation": "--data"}
_OUTPUT = FLAGS.string("output", "", "Directory of the artifact; new or empty.")
_WEIGHTS = FLAGS.list("weights", [], "Comma-separated weight of each model; default: equal ones.")
_DATA = FLAGS.list("data", [], "Comma-separated files, globs or hub names on which to evaluate; empty: none.")
_FORMAT = FLAGS.string("format", "auto", "Record format of --data; auto: detected.")
_LIMIT = FLAGS.integer("limit", 0, "Maximum number of comparisons of --data; 0: no limit.", lower_bound=0)


def main(arguments: Sequence[str]) -> None:
    """Averages the models of the positional arguments to --output."""
    models = arguments[1:]
    if not models or not _OUTPUT.value:
        raise InputError("models (positional arguments) and --output are required; see --help")
    try:
        weights = [float(weight) for weight in _WEIGHTS.value]
    except ValueError as error:
        raise InputError(f"--weights is {','.join(_WEIGHTS.value)}; expected numbers") from error
    average(models, pathlib.Path(_OUTPUT.value), weights)
    serve = shlex.join([f"--model={_OUTPUT.value}", "--grpc_port=8001"])
    wrote = f"wrote {_OUTPUT.value}, the weight average of {len(models)} models"
    print(f"{wrote}; serve it with: python -m rmjax.serve {serve}")
    if _DATA.value:
        _compare([*models, _OUTPUT.value])


def _compare(models: Sequence[str]) -> None:
    """Prints the accuracy of each model on --data, with its 95 % bootstrap interval."""
    width = max(map(len, models))
    print(f"{'model':<{width}}  accuracy  95 % interval")
    for path in models:
        pipeline = load_pipeline(path, option=None).with_data_options(_FORMAT.value, (), None)
        items = read_evaluation_data(_DATA.value, pipeline.options, limit=_LIMIT.value)
        found = evaluate(pipeline, items, progress=False).metrics
        if "accuracy" not in found:
            raise InputError("--data: no record has a preference; expected chosen and rejected responses")
        interval = f"{found['accuracy_low']:.4f} to {found['accuracy_high']:.4f}" if "accuracy_low" in found else "-"
        print(f"{path:<{width}}  {found['accuracy']:.4f}    {interval}")


if __name__ == "__main__":
    program.run(main, FLAGS, options=_OPTIONS)
