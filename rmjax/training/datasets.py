"""The training and the validation dataset of a run."""

from collections.abc import Callable, Mapping, Sequence

from rmjax.core.config import Config
from rmjax.core.errors import InputError
from rmjax.core.text import count_of
from rmjax.data.packing.plan import make_mixture
from rmjax.data.records.read import SYNTHETIC
from rmjax.data.records.sources import Source, find_sources
from rmjax.data.tokens.dataset import TokenizedDataset, concatenate
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer

Mixture = tuple[tuple[int, int], ...]  # see `BatchPlan.mixture`
Log = Callable[[str], object]  # called with each line that a program prints
SPLITS = ("train", "validation")


def load(
    config: Config, sources: Mapping[str, Sequence[str | Source]], tokenizer: Tokenizer, log: Log, progress: bool
) -> tuple[TokenizedDataset, TokenizedDataset, Mixture]:
    """Returns the training and the validation dataset, and the mixture of the training sources (() for none).

    Args:
      sources: of both splits, instead of those of `config.data`.
      log: is called with a line about each source.
      progress: show progress bars.

    Raises:
      InputError: a source cannot be read, or none of a split's records can be used.
    """
    for split in SPLITS:
        if not sources[split]:
            raise InputError(f"config.data.{split} is empty; set a path, a glob, a hub name, or {SYNTHETIC!r}")
        if files := [source for source in sources[split] if source != SYNTHETIC]:
            find_sources(files)  # raises for a wrong path, before other sources are tokenized
    if SYNTHETIC in sources["validation"] and SYNTHETIC not in sources["train"]:
        raise InputError(
            f"config.data.validation is the built-in data, {SYNTHETIC!r}, and config.data.train is not: validation "
            "metrics and the best checkpoint would be unrelated to the training data; set config.data.validation"
        )
    load_split = lambda split: _load_split(config.data, split, sources[split], tokenizer, log, progress)
    training, validation = map(load_split, SPLITS)
    weights = config.data.weights
    mixture = make_mixture([len(dataset) for dataset in training], weights) if weights else ()
    return concatenate(training), concatenate(validation), mixture


def _load_split(
    data: Config, split: str, sources: Sequence[str | Source], tokenizer: Tokenizer, log: Log, progress: bool
) -> list[TokenizedDataset]:
    """Returns the dataset of each source of a split; the limit applies to each."""
    options, size = DatasetOptions.from_config(data, split), data[f"synthetic_{split}"]
    datasets, records, causes = [], 0, []
    for source in sources:
        dataset, report = load_dataset(source, tokenizer, options, split=split, synthetic_size=size, progress=progress)
        log(f"{split}: {report}")
        datasets.append(dataset)
        records += report.records
        causes += report.causes()
    if not any(map(len, datasets)):
        reason = f": {'; '.join(causes)}" if causes else ""
        raise InputError(f"config.data.{split}: no usable comparison in {count_of(records, 'record')}{reason}")
    return datasets


def warn_of_overlap(training: TokenizedDataset, validation: TokenizedDataset, log: Log) -> None:
    """Logs a warning if validation comparisons are in the training data too."""
    if common := validation.overlap(training):
        log(
            f"warning: {len(common):,} of {count_of(len(validation), 'validation comparison')} are in the training "
            f"data too (first: {validation.where(common[0])}); their validation metrics do not measure generalization"
        )
