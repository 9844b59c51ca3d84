"""Options for reading records."""

import dataclasses

from rmjax.core.config import default

DATA_DEFAULTS = default().data  # the section `data` of the configuration: the one declaration of these defaults


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """Options for reading records; the defaults are those of `rmjax.core.config`.

    Attributes:
      format: `auto`, one of `formats.FORMATS`, or the path of a user's Python file (`user_format`).
      strings: prompt format of strings: `joined` concatenates prompt and response; `chat` makes them chat messages.
      columns: fields to rename, `old=new` each.
      ties: `drop` leaves out ties between responses; `half` keeps them as edges with target 0.5.
      missing_label: the number that marks a missing label.
      preference_label: index of the signed preference among NeMo-Aligner's labels; negative: the first response wins.
      label_field: the label of PKU-SafeRLHF, `better_response_id` or `safer_response_id`; empty: the only one.
      step_separator: text between the steps of a process record.
      step_readout: whether a step's reward is read at the end of the `step`, or of the `separator` that follows it.
      step_labels: whether step label 0 is wrong (`binary`), or neutral beside -1 and 1 (`ternary`); `auto`: ternary if
        any label of the source is -1.
      group_prompts: join single responses to one prompt into one comparison, so that the prompt is computed once.
      exclude, duplicates, similarity: which training comparisons are left out; see `curation.Curation`.
      on_bad_record: `error` or `skip`.
      synthetic_format: format of the built-in data if `format` is `auto`.
      limit: number of comparisons to read; 0: all.
      labeled: False for scoring: labels are not read, and equal responses are accepted.
    """

    format: str = DATA_DEFAULTS.format
    strings: str = DATA_DEFAULTS.strings
    columns: tuple[str, ...] = DATA_DEFAULTS.columns
    ties: str = DATA_DEFAULTS.ties
    missing_label: float = DATA_DEFAULTS.missing_label
    preference_label: int = DATA_DEFAULTS.preference_label
    label_field: str = DATA_DEFAULTS.label_field
    step_separator: str = DATA_DEFAULTS.step_separator
    step_readout: str = DATA_DEFAULTS.step_readout
    step_labels: str = DATA_DEFAULTS.step_labels
    group_prompts: bool = DATA_DEFAULTS.group_prompts
    exclude: tuple[str, ...] = DATA_DEFAULTS.exclude
    duplicates: str = DATA_DEFAULTS.duplicates
    similarity: float = DATA_DEFAULTS.similarity
    on_bad_record: str = DATA_DEFAULTS.on_bad_record
    synthetic_format: str = DATA_DEFAULTS.synthetic_format
    limit: int = 0
    labeled: bool = True
