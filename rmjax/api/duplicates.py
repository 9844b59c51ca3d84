"""Duplicates in data, and its overlap with evaluation sets."""

from collections.abc import Sequence

from rmjax.api.data import Data, to_sources
from rmjax.data.curation.duplicates import signatures
from rmjax.data.curation.report import DuplicateReport, report_duplicates
from rmjax.data.curation.selection import read_reference
from rmjax.data.records.options import DATA_DEFAULTS, ReadOptions
from rmjax.data.records.read import read_comparisons


def find_duplicates(
    data: Data,
    against: Data = None,
    *,
    format: str = "auto",
    columns: Sequence[str] = (),
    strings: str = "joined",
    similarity: float = DATA_DEFAULTS.similarity,
    on_bad_record: str = "error",
    progress: bool = False,
) -> DuplicateReport:
    """Returns the numbers of duplicates in `data`, and of the prompts that it has in common with `against`.

    They are what the configuration keys `data.duplicates` and `data.exclude` leave out of the training data.

    Args:
      data: training data.
      against: evaluation sets, of any format, or prompts alone.
      format, columns, strings: of the records; as in the section `data` of the configuration.
      similarity: Jaccard similarity of word bigrams from which texts are similar, 0.5 to 1.
      on_bad_record: `error`, or `skip` records of `data` that cannot be read.
      progress: show progress bars.

    Raises:
      InputError: a record cannot be used, or no record of an evaluation set has a prompt.
    """
    options = ReadOptions(format=format, columns=tuple(columns), strings=strings, on_bad_record=on_bad_record)
    comparisons, _ = read_comparisons(to_sources(data), options, synthetic_size=DATA_DEFAULTS.synthetic_train)
    reference = None if against is None else read_reference(to_sources(against), options, progress=progress)
    found = signatures(comparisons, progress="comparing texts" if progress else "")
    return report_duplicates(comparisons, found, similarity, reference)
