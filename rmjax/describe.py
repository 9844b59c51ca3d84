"""Describes the records of a data source, and how training would use them.

    python -m rmjax.describe --data=SOURCE [--model=PATH] [--validation=SOURCE]

Prints format, counts, lengths, ties, label ranges, duplicates, overlap, dropped records and one tokenized comparison.
"""

from collections.abc import Sequence

from absl import flags

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.data.description import describe, overlap
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import loading

_DATA = flags.DEFINE_list("data", [], "Comma-separated files, globs or hub names; or `synthetic`.")
_VALIDATION = flags.DEFINE_list("validation", [], "Sources to check for overlap with --data.")
_MODEL = flags.DEFINE_string("model", "", "Model whose tokenizer and data options apply; empty: byte-level tokenizer.")
_FORMAT = flags.DEFINE_string("format", "auto", "Record format; auto: detected.")
_STRINGS = flags.DEFINE_enum("strings", None, ["joined", "chat"], "Prompt format of strings; default: the model's.")
_TIES = flags.DEFINE_enum("ties", None, ["drop", "half"], "Drop ties, or target 0.5; default: the model's.")
_STEPS = flags.DEFINE_enum("step_labels", None, ["auto", "binary", "ternary"], "Step label scale; default: model's.")
_MISSING = flags.DEFINE_float("missing_label", None, "Number marking a missing label; default: the model's, or -100.")
_COLUMNS = flags.DEFINE_list("columns", [], "Fields to rename, comma-separated old=new.")
_GROUP = flags.DEFINE_bool("group_prompts", False, "Merge single responses to the same prompt into one comparison.")
_MAX_LENGTH = flags.DEFINE_integer("max_length", 0, "Maximum conversation length in tokens; 0: the model's, or 1024.")
_ON_OVERLONG = flags.DEFINE_enum("on_overlong", "drop", ["drop", "truncate_prompt"], "Handling of longer comparisons.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Maximum number of comparisons; 0: no limit.", lower_bound=0)


def main(_: Sequence[str]) -> None:
    """Prints the description of --data."""
    if not _DATA.value:
        raise InputError("--data is missing; give a file, a glob, a hub name, or `synthetic`")
    tokenizer = Tokenizer.load(loading.tokenizer_directory(_MODEL.value) if _MODEL.value else "")
    data_options, max_length = loading.data_options(_MODEL.value) if _MODEL.value else ({}, 0)
    given = {flag.name: flag.value for flag in (_STRINGS, _TIES, _STEPS, _MISSING) if flag.value is not None}
    options = DatasetOptions(
        format=_FORMAT.value,
        columns=tuple(_COLUMNS.value),
        group_prompts=_GROUP.value,
        limit=_LIMIT.value,
        max_length=_MAX_LENGTH.value or max_length or 1024,
        on_overlong=_ON_OVERLONG.value,
        on_bad_record="skip",
        **data_options | given,
    )
    print(describe(_DATA.value, tokenizer, options))
    if _VALIDATION.value:
        print(overlap(_DATA.value, _VALIDATION.value, options))


if __name__ == "__main__":
    program.run(main)
