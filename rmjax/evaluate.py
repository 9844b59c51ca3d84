"""Evaluates a reward model on labelled data.

    python -m rmjax.evaluate --model=PATH --data=SOURCE --output=DIR
    python -m rmjax.evaluate --model=PATH --suite=rewardbench2 --output=DIR

Writes metrics.json, predictions.jsonl, suspicious.jsonl and report.html, and prints the main metrics.

Multi-host: run the same command on each host, as for rmjax.score; only the first process writes and prints.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax

from rmjax._model_flags import ModelFlags
from rmjax.core import locks, os_errors, program
from rmjax.core.errors import InputError
from rmjax.data.records.formats import find_format
from rmjax.data.records.formats.published import SAFETY_LABELS
from rmjax.evaluation.comparison import check_comparable
from rmjax.evaluation.ensemble import load_models, read_attributes
from rmjax.evaluation.evaluate import Evaluation, evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import RewardPipeline, describe_model
from rmjax.evaluation.robustness import CHANGES, check_changes
from rmjax.evaluation.suites import SUITES, find_suite
from rmjax.evaluation.suites.run import evaluate_suite, read_suite, suite_pipeline, suite_title

FLAGS = program.Flags()
_OPTIONS = {  # configuration keys in messages
    **{
        f"data.{name}": f"--{name}"
        for name in ("format", "strings", "columns", "on_bad_record", "max_length", "template_date")
    },
    "data.label_field": "--label_field",
    "data.validation": "--data",
}
_MODEL = FLAGS.string("model", "", "Artifact, Hugging Face directory with a head, or workdir; A,B,C: an ensemble.")
_DATA = FLAGS.list("data", [], "Comma-separated files, globs, hub names or name=path; or `synthetic`.")
_SUITE = FLAGS.enum("suite", "", ["", *SUITES], "Published benchmark; --data is then optional: the published sets.")
_THRESHOLD = FLAGS.float("threshold", None, "Reward above which a step is right, for suites of steps.")
_OUTPUT = FLAGS.string("output", "", "Directory for the results.")
_FORMAT = FLAGS.string("format", "auto", "Record format, or a Python file with one; auto: detected.")
_STRINGS = FLAGS.enum("strings", None, ["joined", "chat"], "Prompt format of strings; default: the model's.")
_COLUMNS = FLAGS.list("columns", [], "Fields to rename, comma-separated old=new; old=_: leave out.")
_LABEL = FLAGS.enum("label_field", None, [*SAFETY_LABELS], "Label of PKU-SafeRLHF; default: the model's.")
_LIMIT = FLAGS.integer("limit", 0, "Maximum number of comparisons; 0: no limit.", lower_bound=0)
_ON_BAD = FLAGS.enum("on_bad_record", "error", ["error", "skip"], "Handling of records that cannot be read.")
_LOADING = ModelFlags(FLAGS, "Maximum length in tokens; longer: not scored; 0: the model's.")
_ROBUSTNESS = FLAGS.list("robustness", [], f"Changes of the responses to score too: {', '.join(CHANGES)}.")
_COMPARE = FLAGS.string("compare", "", "Another model to compare with on the same data, as --model.")


def main(_: Sequence[str]) -> None:
    """Evaluates --model on --data."""
    if not _MODEL.value or not (_DATA.value or _SUITE.value) or not _OUTPUT.value:
        raise InputError("--model, --data (or --suite) and --output are required")
    if _SUITE.value and (_ROBUSTNESS.value or _FORMAT.value != "auto"):
        raise InputError("--suite has its own format and measures; leave out --format and --robustness")
    if _THRESHOLD.value is not None and not (_SUITE.value and find_suite(_SUITE.value).steps):
        raise InputError("--threshold needs --suite=processbench or --suite=prmbench")
    find_format(_FORMAT.value)
    check_changes(_ROBUSTNESS.value, "--robustness")
    program.initialize_distributed()
    output = pathlib.Path(_OUTPUT.value)
    with locks.hold(output, "--output", directory=True), os_errors.reported(output):
        other = read_attributes(_COMPARE.value) if _COMPARE.value else ()
        evaluation, compared = _evaluate(_MODEL.value, _ROBUSTNESS.value, other), None
        try:
            if _COMPARE.value:
                compared = evaluation.compare(_evaluate(_COMPARE.value, ()))
                evaluation = evaluation.with_comparison(compared)
        finally:  # the first model's evaluation is kept if the other model cannot be compared
            if jax.process_index() == 0:
                evaluation.save(_OUTPUT.value)
    print(evaluation)
    if compared is not None:
        print(f"compared with {_COMPARE.value}:\n{compared}")
    print(f"wrote {_OUTPUT.value}/ (metrics.json, predictions.jsonl, suspicious.jsonl, report.html)")


def _evaluate(model: str, robustness: Sequence[str], other: Sequence[str] = ()) -> Evaluation:
    """Evaluates a model on --data with the options of the command line.

    Args:
      other: the attributes of the model that it is compared with; (): it is not compared.
    """
    pipeline = _load(model)
    print(describe_model(model, pipeline))
    if _SUITE.value:
        suite, pipeline = find_suite(_SUITE.value), suite_pipeline(pipeline, _STRINGS.value)
        bad, limit = _ON_BAD.value, _LIMIT.value
        records = read_suite(suite, _DATA.value, pipeline.options, limit=limit, on_bad_record=bad)
        title = suite_title(model, suite, _DATA.value)
        return evaluate_suite(suite, pipeline, records, threshold=_THRESHOLD.value, title=title)
    notes: list[str] = []
    items = read_evaluation_data(
        _DATA.value, pipeline.options, limit=_LIMIT.value, on_bad_record=_ON_BAD.value, log=notes.append
    )
    if other:
        check_comparable(items, pipeline.attributes, other)
    title = f"{model} on {','.join(_DATA.value)}"
    return evaluate(pipeline, items, title=title, notes=notes, robustness=robustness)


def _load(model: str) -> RewardPipeline:
    pipeline = load_models(model, **_LOADING.options())
    pipeline = pipeline.with_data_options(_FORMAT.value, _COLUMNS.value, _STRINGS.value, _LABEL.value)
    return dataclasses.replace(pipeline, option_names=_OPTIONS)


if __name__ == "__main__":
    program.use_huge_pages()
    program.run(main, FLAGS, options=_OPTIONS)
