"""Calibrates a reward model after training, and gives its rewards a standard deviation; nothing is retrained.

    python -m rmjax.calibrate --model=PATH --data=FILE --output=DIR [--length] [--isotonic] [--laplace]

Writes an artifact: the temperature is in its head's weights, the mean in the shift, and what a linear head cannot hold
in rmjax.json and uncertainty.rmjax. Prints the metrics before and after, cross-validated over prompts.
"""

import pathlib
import shlex
from collections.abc import Sequence

from rmjax.api.calibration import calibrate
from rmjax.core import program
from rmjax.core.errors import InputError

FLAGS = program.Flags()
_OPTIONS = {"data.format": "--format", "data.validation": "--data"}
_MODEL = FLAGS.string("model", "", "Artifact, Hugging Face directory with a reward head, or workdir.")
_DATA = FLAGS.list("data", [], "Comma-separated files, globs or hub names of held-out labelled data.")
_OUTPUT = FLAGS.string("output", "", "Directory of the artifact; new or empty.")
_FORMAT = FLAGS.string("format", "auto", "Record format of --data; auto: detected.")
_LIMIT = FLAGS.integer("limit", 0, "Maximum number of comparisons; 0: no limit.", lower_bound=0)
_LENGTH = FLAGS.bool("length", False, "Subtract the LOWESS curve of rewards on the tokens of conversations.")
_ISOTONIC = FLAGS.bool("isotonic", False, "Map rewards to labels by an ascending curve.")
_LAPLACE = FLAGS.bool("laplace", False, "Standard deviations of a Laplace approximation of the linear head.")


def main(_: Sequence[str]) -> None:
    """Calibrates --model on --data and writes --output."""
    if not (_MODEL.value and _DATA.value and _OUTPUT.value):
        raise InputError("--model, --data and --output are required")
    found = calibrate(
        _MODEL.value,
        _DATA.value,
        pathlib.Path(_OUTPUT.value),
        length=_LENGTH.value,
        isotonic=_ISOTONIC.value,
        laplace=_LAPLACE.value,
        format=_FORMAT.value,
        limit=_LIMIT.value,
    )
    print(f"temperature {found['temperature']:.4f}, mean {found['mean']:.4f} (fitted on all of the data)")
    print("metrics with 95 % intervals, before and after, cross-validated in 5 folds of prompts:")
    before, after = found["metrics"]["before"], found["metrics"]["after"]
    for name in before:
        if name in after and not name.endswith(("_low", "_high")):
            print(f"  {name:<24}{_cell(before, name)}  {_cell(after, name)}")
    if _LENGTH.value or _ISOTONIC.value:
        print("note: rmjax applies the curves (rmjax.json: correction); a Hugging Face head cannot hold them")
    serve = shlex.join([f"--model={_OUTPUT.value}", "--grpc_port=8001"])
    print(f"wrote {_OUTPUT.value}; serve it with: python -m rmjax.serve {serve}")


def _cell(metrics: dict[str, float], name: str) -> str:
    bounds = [metrics.get(f"{name}_{end}") for end in ("low", "high")]
    interval = "" if None in bounds else f" ({bounds[0]:.4f} to {bounds[1]:.4f})"
    return f"{metrics[name]:.4f}{interval}"


if __name__ == "__main__":
    program.run(main, FLAGS, options=_OPTIONS)
