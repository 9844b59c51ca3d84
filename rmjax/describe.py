"""Describes the records of a data source, and how training would use them.

    python -m rmjax.describe --data=SOURCE [--model=PATH] [--validation=SOURCE] [--against=SOURCE]
    python -m rmjax.describe --config=FILE [--config.data.train=SOURCE ...]

Prints format, counts, lengths, ties, label ranges, duplicates, overlap, dropped records and one tokenized comparison.
--output=FILE.html writes them, with histograms and examples, as an HTML page; a file that is there is replaced.
With --config, sources, tokenizer and data options are those of the configuration: both splits are shown as
rmjax.train with the same arguments would use them.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence

from rmjax.core import locks, program, readouts
from rmjax.core.config import Config
from rmjax.core.errors import InputError
from rmjax.data.description import DataDescription, describe, describe_splits, overlap
from rmjax.data.records.formats.published import SAFETY_LABELS
from rmjax.data.report import Description
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import paths
from rmjax.training import datasets
from rmjax.training.checks import check_config
from rmjax.training.objectives import make_head, make_objective

FLAGS = program.Flags()
_CONFIG = FLAGS.config("Configuration file of a training run; --config.section.key=value overrides.")
_DATA = FLAGS.list("data", [], "Comma-separated files, globs or hub names; or `synthetic`.")
_VALIDATION = FLAGS.list("validation", [], "Sources to check for overlap with --data.")
_AGAINST = FLAGS.list("against", [], "Evaluation sets whose prompts to look for in the training data.")
_MODEL = FLAGS.string("model", "", "Model whose tokenizer and data options apply; empty: byte-level tokenizer.")
_FORMAT = FLAGS.string("format", "auto", "Record format, or a Python file with one; auto: detected.")
_STRINGS = FLAGS.enum("strings", None, ["joined", "chat"], "Prompt format of strings; default: the model's.")
_TIES = FLAGS.enum("ties", None, ["drop", "half"], "Drop ties, or target 0.5; default: the model's.")
_LABEL = FLAGS.enum("label_field", None, [*SAFETY_LABELS], "Label of PKU-SafeRLHF; default: the model's.")
_STEPS = FLAGS.enum("step_labels", None, ["auto", "binary", "ternary"], "Step label scale; default: model's.")
_MISSING = FLAGS.float("missing_label", None, "Number marking a missing label; default: the model's, or -100.")
_COLUMNS = FLAGS.list("columns", [], "Fields to rename, comma-separated old=new; old=_: leave out.")
_GROUP = FLAGS.bool("group_prompts", False, "Merge single responses to the same prompt into one comparison.")
_MAX_LENGTH = FLAGS.integer("max_length", 0, "Maximum conversation length in tokens; 0: the model's, or 1024.")
_ON_OVERLONG = FLAGS.enum("on_overlong", "drop", ["drop", "truncate_prompt"], "Handling of longer comparisons.")
_DATE = FLAGS.string("template_date", "", program.TEMPLATE_DATE_HELP)
_SIMILARITY = FLAGS.float("similarity", 0.7, "Jaccard similarity of word bigrams from which texts are similar.", 0.5, 1)
_LIMIT = FLAGS.integer("limit", 0, "Maximum number of comparisons; 0: no limit.", lower_bound=0)
_OUTPUT = FLAGS.string("output", "", "HTML page to write, with histograms and examples; replaces an earlier one.")
_OPTIONS = {  # the configuration keys of the flags
    "data.train": "--data",
    "data.validation": "--validation",
    "model.path": "--model",
    "data.format": "--format",
    "data.strings": "--strings",
    "data.ties": "--ties",
    "data.label_field": "--label_field",
    "data.step_labels": "--step_labels",
    "data.missing_label": "--missing_label",
    "data.columns": "--columns",
    "data.group_prompts": "--group_prompts",
    "data.max_length": "--max_length",
    "data.on_overlong": "--on_overlong",
    "data.train_limit": "--limit",
    "data.similarity": "--similarity",
    "data.exclude": "--against",
    "data.template_date": "--template_date",
}


def main(_: Sequence[str]) -> None:
    """Prints the description of --data, or of the data of --config, and writes it to --output."""
    output = pathlib.Path(_OUTPUT.value)
    if _OUTPUT.value and output.suffix not in (".html", ".htm"):
        raise InputError(f"--output={output}: expected a file with the ending .html")
    lock = locks.hold(output, "--output", directory=False) if _OUTPUT.value else contextlib.nullcontext()
    with lock:
        found, notes = _describe()
        if _OUTPUT.value:
            Description.of(found, notes).save(output)
            print(f"wrote {output}")


def _describe() -> tuple[DataDescription, tuple[str, ...]]:
    """Prints the description, and returns it with the notes that were printed beside it."""
    if _CONFIG.value is not None:
        if given := [(flag, key) for key, flag in _OPTIONS.items() if FLAGS.values[flag.lstrip("-")].present]:
            flag, key = given[0]
            raise InputError(f"{flag} does not apply with --config; use --config.{key}")
        return _describe_config(_CONFIG.value)
    if _DATA.value:
        try:
            return _describe_data(), ()
        except InputError as error:
            raise InputError(program.rename_options(str(error), _OPTIONS)) from error
    raise InputError("--data is missing; give a file, a glob, a hub name, or `synthetic`; or give --config")


def _describe_config(config: Config) -> tuple[DataDescription, tuple[str, ...]]:
    check_config(config)
    tokenizer = datasets.load_tokenizer(config)
    print(f"tokenizer: {tokenizer.name}; strings: {config.data.strings}; max_length: {config.data.max_length}\n")
    found = describe_splits(config.data, tokenizer)
    print(found)
    notes: tuple[str, ...] = ()
    try:
        sources = {split: config.data[split] for split in datasets.SPLITS}
        *splits, _ = datasets.load(config, sources, tokenizer, log=lambda line: None, progress=False)
        head = make_head(config.objective, splits[0])
        objective = make_objective(config.objective, head)
        for split, dataset in zip(datasets.SPLITS, splits, strict=True):
            objective.check_data(split, dataset.with_attributes(head.attributes))
    except InputError as error:
        notes = (f"training would stop: {error}",)
        print(*notes)
    return found, notes


def _describe_data() -> DataDescription:
    path = _MODEL.value
    date = _DATE.value or (path and paths.template_date(path))
    readout = paths.readout(path) if path else readouts.LAST_TOKEN
    tokenizer = Tokenizer.load(paths.tokenizer_directory(path) if path else "", date, readout)
    data_options, max_length = paths.data_options(path) if path else ({}, 0)
    given = {flag.name: flag.value for flag in (_STRINGS, _TIES, _LABEL, _STEPS, _MISSING) if flag.value is not None}
    options = DatasetOptions(
        format=_FORMAT.value,
        columns=tuple(_COLUMNS.value),
        group_prompts=_GROUP.value,
        limit=_LIMIT.value,
        max_length=_MAX_LENGTH.value or max_length or 1024,
        on_overlong=_ON_OVERLONG.value,
        on_bad_record="skip",
        similarity=_SIMILARITY.value,
        **data_options | given,
    )
    found = describe(_DATA.value, tokenizer, options, _AGAINST.value)
    if _VALIDATION.value:
        found = dataclasses.replace(found, overlap=overlap(_DATA.value, _VALIDATION.value, options))
    print(found)
    return found


if __name__ == "__main__":
    program.run(main, FLAGS)
