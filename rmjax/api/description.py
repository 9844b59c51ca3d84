"""Description of data, before training."""

from collections.abc import Sequence

from rmjax.api.data import Data, to_sources
from rmjax.core import readouts
from rmjax.data.description import describe as describe_sources
from rmjax.data.report import Description
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import paths


def describe(
    data: Data,
    against: Data = None,
    *,
    model: str = "",
    format: str = "auto",
    columns: Sequence[str] = (),
    max_length: int = 0,
    limit: int = 0,
) -> Description:
    """Returns what `python -m rmjax.describe` prints: counts, lengths, labels, duplicates, a comparison as tokens.

    A notebook shows it with histograms and examples; its method `save` writes them as an HTML page. Records that cannot
    be read are counted and left out.

    Args:
      data: training or evaluation data.
      against: evaluation sets whose prompts are looked for in `data`.
      model: directory or hub name of the model whose tokenizer and data options apply; empty: byte-level tokenizer.
      format, columns: of the records, as in the section `data` of the configuration.
      max_length: of a conversation in tokens; 0: the model's, or 1,024.
      limit: maximum number of comparisons; 0: no limit.

    Raises:
      InputError: a source cannot be read.
    """
    date, readout = (paths.template_date(model), paths.readout(model)) if model else ("", readouts.LAST_TOKEN)
    tokenizer = Tokenizer.load(paths.tokenizer_directory(model) if model else "", date, readout)
    of_model, longest = paths.data_options(model) if model else ({}, 0)
    options = DatasetOptions(
        format=format,
        columns=tuple(columns),
        limit=limit,
        max_length=max_length or longest or 1024,
        on_bad_record="skip",
        **of_model,
    )
    reference = () if against is None else to_sources(against)
    return Description.of(describe_sources(to_sources(data), tokenizer, options, reference))
