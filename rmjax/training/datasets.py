"""The training and the validation dataset of a run."""

import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence

from rmjax.core import readouts
from rmjax.core.config import Config
from rmjax.core.errors import InputError
from rmjax.core.processes import of_first
from rmjax.core.text import count_of
from rmjax.data.curation.selection import Curation
from rmjax.data.packing.order import make_mixture
from rmjax.data.records.read import SYNTHETIC
from rmjax.data.records.sources import Source, find_sources
from rmjax.data.tokens import templates
from rmjax.data.tokens.dataset import TokenizedDataset, concatenate
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import paths
from rmjax.models.workdir import Workdir

Mixture = tuple[tuple[int, int], ...]  # see `BatchPlan.mixture`
Log = Callable[[str], object]  # called with each line that a program prints
SPLITS = ("train", "validation")


def load_tokenizer(config: Config, workdir: Workdir | None = None) -> Tokenizer:
    """Returns the tokenizer of a run, with the date that its chat template writes.

    The date is the one of `config`, else that of the run in `workdir`, else the first process' present date; where
    rewards are read: that of `config`, else of the run in `workdir`, else of the model at `config.model.path`.

    Raises:
      InputError: the tokenizer cannot be loaded.
    """
    date, readout = config.data.template_date, config.data.readout
    if workdir is not None and workdir.created:
        saved = workdir.config().data
        date, readout = date or saved.template_date, readout or saved.readout or readouts.LAST_TOKEN
    tokenizer = Tokenizer.load(paths.tokenizer_of(config), date, readout or paths.readout_of(config))
    if date or not tokenizer.writes_date:
        return tokenizer
    today = datetime.date.fromordinal(of_first(templates.today().toordinal()))
    return dataclasses.replace(tokenizer, date=today.isoformat())


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
    if config.data.exclude:
        find_sources(config.data.exclude)
    if SYNTHETIC in sources["validation"] and SYNTHETIC not in sources["train"]:
        raise InputError(
            f"config.data.validation is the built-in data, {SYNTHETIC!r}, and config.data.train is not: validation "
            "metrics and the best checkpoint would be unrelated to the training data; set config.data.validation"
        )
    load_split = lambda split: _load_split(config.data, split, sources[split], tokenizer, log, progress)
    (training, rendered), (validation, more) = map(load_split, SPLITS)
    if rendered or more:
        log(tokenizer.describe_template()[-1])
    weights = config.data.weights
    mixture = make_mixture([len(dataset) for dataset in training], weights) if weights else ()
    return concatenate(training), concatenate(validation), mixture


def _load_split(
    data: Config, split: str, sources: Sequence[str | Source], tokenizer: Tokenizer, log: Log, progress: bool
) -> tuple[list[TokenizedDataset], bool]:
    """Returns the dataset of each source of a split, to each of which the limit applies; and if any has messages."""
    options, size = DatasetOptions.from_config(data, split), data[f"synthetic_{split}"]
    datasets, records, causes, rendered = [], 0, [], False
    curation: Curation | None = None
    for source in sources:
        curation = Curation(source, options, split=split, synthetic_size=size, previous=curation, progress=progress)
        dataset, report = load_dataset(
            source, tokenizer, options, split=split, synthetic_size=size, curation=curation, progress=progress
        )
        log(f"{split}: {report}")
        if fields := report.fields_line():
            log(f"  {fields}")
        datasets.append(dataset)
        records += report.records
        causes += report.causes()
        rendered = rendered or report.rendered > 0
    if not any(map(len, datasets)):
        reason = f": {'; '.join(causes)}" if causes else ""
        raise InputError(f"config.data.{split}: no usable comparison in {count_of(records, 'record')}{reason}")
    return datasets, rendered


def warn_of_overlap(training: TokenizedDataset, validation: TokenizedDataset, log: Log) -> None:
    """Logs a warning if validation comparisons are in the training data too."""
    if common := validation.overlap(training):
        log(
            f"warning: {len(common):,} of {count_of(len(validation), 'validation comparison')} are in the training "
            f"data too (first: {validation.where(common[0])}); their validation metrics do not measure generalization"
        )
