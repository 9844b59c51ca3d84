"""Says what is in a source of data, and what training would do with it.

    python -m rmjax.describe --data=SOURCE [--model=PATH] [--validation=SOURCE]

Format, counts, lengths, ties, label ranges, duplicates, overlap, what is dropped, and one comparison token by token.
"""

from collections.abc import Sequence

from absl import flags

from rmjax.core import program
from rmjax.core.errors import InputError
from rmjax.data.description import describe, overlap
from rmjax.data.tokens.load import Options
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import loading

_DATA = flags.DEFINE_list("data", [], "Files, globs or hub names, by commas; or `synthetic`.")
_VALIDATION = flags.DEFINE_list("validation", [], "Sources that should share nothing with --data.")
_MODEL = flags.DEFINE_string("model", "", "Whose tokenizer is meant; empty: the built-in byte-level one.")
_FORMAT = flags.DEFINE_string("format", "auto", "The data's format.")
_STRINGS = flags.DEFINE_enum("strings", None, ["joined", "chat"], "Strings as one text or as messages; the model's.")
_TIES = flags.DEFINE_enum("ties", None, ["drop", "half"], "Ties are left out, or kept with target 0.5; the model's.")
_STEPS = flags.DEFINE_enum("step_labels", None, ["auto", "binary", "ternary"], "What a step's 0 means; the model's.")
_MISSING = flags.DEFINE_float("missing_label", None, "The number that means a missing label; the model's, or -100.")
_COLUMNS = flags.DEFINE_list("columns", [], "Fields to rename, old=new each, by commas.")
_GROUP = flags.DEFINE_bool("group_prompts", False, "Single responses to one prompt are one comparison.")
_MAX_LENGTH = flags.DEFINE_integer("max_length", 0, "Longest conversation in tokens; 0: the model's, or 1024.")
_ON_OVERLONG = flags.DEFINE_enum("on_overlong", "drop", ["drop", "truncate_prompt"], "What becomes of longer ones.")
_LIMIT = flags.DEFINE_integer("limit", 0, "Take the first so many comparisons; 0: all.", lower_bound=0)


def main(_: Sequence[str]) -> None:
    """Describes as the flags say."""
    if not _DATA.value:
        raise InputError("--data is missing; give a file, a glob, a hub name, or `synthetic`")
    tokenizer = Tokenizer.load(loading.tokenizer_directory(_MODEL.value) if _MODEL.value else "")
    data_options, max_length = loading.data_options(_MODEL.value) if _MODEL.value else ({}, 0)
    given = {flag.name: flag.value for flag in (_STRINGS, _TIES, _STEPS, _MISSING) if flag.value is not None}
    options = Options(
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
