"""A whole training run: data, model, batch plans, train state, loop and report."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from rmjax.core.config import Config
from rmjax.core.errors import InputError
from rmjax.core.locks import hold
from rmjax.core.mesh import AXES, make_mesh, row_shards
from rmjax.core.os_errors import reported
from rmjax.core.processes import check_same, code_version
from rmjax.core.readouts import is_mean
from rmjax.core.remote import is_remote
from rmjax.core.stopping import StopRequest
from rmjax.core.text import count_of
from rmjax.data.packing.pipeline import make_iterator
from rmjax.data.packing.plan import choose_row_length, evaluation_plan, short_row_length, training_plan
from rmjax.data.records.sources import Source
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import checkpoint_files, continued, loading, partition, start_head
from rmjax.models.attention import row_multiple
from rmjax.models.decoder import RewardModel
from rmjax.models.lora import LoraConfig
from rmjax.models.sharding import check_heads
from rmjax.models.workdir import Workdir
from rmjax.training import datasets, features, loggers, loop, memory, profiling, report, summary
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.checks import check_config, check_workdir
from rmjax.training.logging import OpenWriter, ProgressBar
from rmjax.training.members import Members
from rmjax.training.mirror import mirrored
from rmjax.training.objectives import make_head, make_objective
from rmjax.training.optimizer import check_schedule, make_optimizer, make_schedule
from rmjax.training.step import State, Trainer, local_rows

# Files may lie elsewhere in each process; what is read from them is compared.
_PROCESS_LOCAL = (("data", "train"), ("data", "validation"), ("data", "exclude"))


def train(
    config: Config,
    path: str | pathlib.Path,
    writers: Sequence[OpenWriter] = (),
    *,
    sources: Mapping[str, Sequence[str | Source]] | None = None,
    log: datasets.Log = print,
    progress: bool = True,
) -> loop.TrainingResult:
    """Trains the model of `config` in the workdir at `path`, resuming from its latest checkpoint if there is one.

    A URL is trained in a local copy, see `rmjax.training.mirror`.

    Can be called in any thread, and while an event loop is running.

    Args:
      config: is not changed.
      writers: of metrics, in addition to `logging.WRITERS`.
      sources: {"train": sources, "validation": sources}, instead of `config.data.train` and `config.data.validation`.
      log: is called with each line about the run, in the first process only.
      progress: show progress bars.

    Raises:
      InputError: the configuration, the data, the model and the workdir do not fit together.
    """
    if jax.process_index() > 0:
        log, progress = lambda line: None, False
    config = config.copy_and_resolve_references()
    check_same(_computation(config))
    for split, given in (sources or {}).items():
        config.data[split] = tuple(map(str, given))
    sources = {split: config.data[split] for split in datasets.SPLITS} | dict(sources or {})
    check_config(config)
    with mirrored(path) as directory:
        workdir = Workdir(directory)
        check_workdir(workdir, config)
        with hold(directory, "workdir", directory=True), reported(directory):
            if is_remote(path):
                log(f"workdir: {path}, with the local copy {directory}")
            return _train(config, workdir, writers, sources, log, progress)


def _train(
    config: Config,
    workdir: Workdir,
    writers: Sequence[OpenWriter],
    sources: Mapping[str, Sequence[str | Source]],
    print_line: datasets.Log,
    progress: bool,
) -> loop.TrainingResult:
    """Trains in a workdir that is locked; see `train`. May change `config`."""
    said: list[str] = []

    def log(line: str) -> None:
        said.append(line)
        print_line(line)

    mesh = make_mesh([config.mesh[axis] for axis in AXES])
    tokenizer = datasets.load_tokenizer(config, workdir)
    if tokenizer.writes_date:
        config.data.template_date = tokenizer.date  # kept in the workdir
    config.data.readout = tokenizer.readout
    model = _make_model(config, tokenizer, mesh)
    memory.check_state(config, model, mesh)
    training, validation, mixture = datasets.load(config, sources, tokenizer, log, progress)
    head = start_head.continue_head(config.model, make_head(config.objective, training))
    head = dataclasses.replace(head, init=config.model.head_init, members=config.model.head_members)
    objective = make_objective(config.objective, head)
    training, validation = (dataset.with_attributes(head.attributes) for dataset in (training, validation))
    objective.check_data("train", training)
    objective.check_data("validation", validation)
    data_hashes = {"train": training.fingerprint(), "validation": validation.fingerprint()}
    check_same({f"the data of config.data.{split}": value for split, value in data_hashes.items()})
    _check_same_data(workdir, data_hashes)
    datasets.warn_of_overlap(training, validation, log)
    with jax.set_mesh(mesh), StopRequest() as stop:
        splits = _make_plans(config, training, validation, mixture, mesh)
        plan = splits[0].plan
        profiling.parse_steps(config.train.profile, plan.num_steps)
        check_schedule(config.optimizer, plan.num_steps)
        schedule = make_schedule(config.optimizer, plan.num_steps)
        optimizer = make_optimizer(config.optimizer, schedule, model.decoder.num_layers)
        model = dataclasses.replace(model, head=head)
        trainable = partition.trainable_pattern(config)
        clip, skip = config.optimizer.grad_clip, config.train.skip_non_finite > 0
        members = Members.from_config(config)
        trainer = Trainer(model, objective, optimizer, schedule, clip, mesh, trainable, skip, members)
        longest = max(int(dataset.lengths.max()) for dataset in (training, validation))
        for line in memory.check(config, trainer, memory.shape_of(config, plan), longest):
            log(line)
        if jax.process_index() == 0 and not workdir.created:
            _create(workdir, config, model, tokenizer, data_hashes)
        head_run = None
        if features.usable(config, model):
            head_run = features.prepare(config, model, mesh, splits, log, progress)
            if head_run:
                splits, trainer = head_run.splits, dataclasses.replace(trainer, model=head_run.model)
            plan = splits[0].plan
        steps = checkpoint_files.steps(workdir.checkpoint_directory)
        check_same({"the tokenizer": tokenizer.fingerprint, "the checkpoints": steps})
        checkpoints = Checkpoints(workdir, config.checkpoint.keep, config.checkpoint.best, config.checkpoint.keep_best)
        iterator = make_iterator(splits[0].dataset, plan, splits[0].rows)
        adapters = continued.find(config, model) if checkpoints.latest() is None else None
        if adapters and adapters.line:
            log(adapters.line)
        state = _initial_state(config, model, trainer, workdir, checkpoints, iterator, head_run, adapters, progress)
        step = int(state["step"])
        for line in summary.start_lines(config, model, trainer, splits, workdir, step):
            log(line)
        bar = ProgressBar(plan.num_steps, step, log, disable=not progress or step == plan.num_steps)
        writers = [*writers, *loggers.find(config.train.loggers)]
        result = loop.run(config, trainer, state, iterator, *splits, checkpoints, workdir, writers, bar, stop)
    if jax.process_index() == 0 and not result.stopped:
        report.write(workdir, config, result.step, said)
    for line in summary.end_lines(config, result, sources["validation"], workdir, plan.num_steps):
        log(line)
    return result


def _computation(config: Config) -> dict[str, Any]:
    """Returns what decides the computation and its control flow, except data, which is compared by its content."""
    keys = {
        f"config.{section}.{key}": value
        for section, values in json.loads(config.to_json()).items()
        for key, value in (values.items() if isinstance(values, dict) else ())
        if (section, key) not in _PROCESS_LOCAL
    }
    return keys | code_version()


def _check_same_data(workdir: Workdir, data_hashes: Mapping[str, str]) -> None:
    """Raises InputError if the data of a split differs from the data that the run began with."""
    saved = workdir.data_hashes()
    for split, value in data_hashes.items():
        if saved.get(split, value) != value:
            kind = {"train": "training"}.get(split, split)
            raise InputError(
                f"{workdir} holds a run with other {kind} data than config.data.{split} gives now; restore the data, "
                "or choose another workdir"
            )


def _create(
    workdir: Workdir, config: Config, model: RewardModel, tokenizer: Tokenizer, data_hashes: Mapping[str, str]
) -> None:
    tokenizer.save(workdir.tokenizer_directory)
    workdir.create(config, model, data_hashes)


def _make_model(config: Config, tokenizer: Tokenizer, mesh: Mesh) -> RewardModel:
    """Returns the model with the default head, checked against the tokenizer, the mesh and the maximum length."""
    model = loading.make_model(config.model, len(tokenizer))
    mean = is_mean(tokenizer.readout)
    model = dataclasses.replace(model, lora=LoraConfig.from_config(config.lora), mean_readout=mean)
    partition.check(config, model)
    decoder = model.decoder
    tokenizer.check_vocabulary(decoder.vocab_size)
    check_heads(decoder, mesh)
    if config.data.row_length % (multiple := mesh.shape["sequence"]):
        raise InputError(
            f"config.data.row_length is {config.data.row_length}; expected a multiple of config.mesh.sequence, "
            f"{multiple}"
        )
    if config.data.max_length > decoder.max_positions:
        raise InputError(
            f"config.data.max_length is {config.data.max_length}; the model supports at most {decoder.max_positions}"
        )
    return dataclasses.replace(model, decoder=decoder.for_length(config.data.max_length))


def _make_plans(
    config: Config, training: TokenizedDataset, validation: TokenizedDataset, mixture: datasets.Mixture, mesh: Mesh
) -> tuple[loop.Split, loop.Split]:
    """Returns the training and the validation split with their batch plans."""
    row_length, multiple = config.data.row_length, row_multiple()
    microbatch_rows = config.train.rows_per_device * row_shards(mesh)

    def choose_length(dataset: TokenizedDataset, batch_size: int, **options: bool) -> int:
        longest = int(np.argmax(dataset.lengths))
        if row_length and dataset.lengths[longest] > row_length:
            tokens = count_of(int(dataset.lengths[longest]), "token")
            raise InputError(
                f"{dataset.where(longest)}: the comparison has {tokens}, more than config.data.row_length = "
                f"{row_length}; raise it, or set it to 0"
            )
        return row_length or choose_row_length(dataset.lengths, batch_size, microbatch_rows, multiple, **options)

    counts = lambda dataset: (dataset.lengths, dataset.readout_counts, dataset.edge_counts)
    chosen = choose_length(training, config.train.batch_size, short_microbatches=True)
    train_plan = training_plan(
        *counts(training),
        batch_size=config.train.batch_size,
        steps=config.train.steps,
        epochs=config.train.epochs,
        seed=config.train.seed if config.data.shuffle else None,
        mixture=mixture,
        row_length=chosen,
        short_length=short_row_length(chosen, multiple),
        microbatch_rows=microbatch_rows,
    )
    validation_plan = evaluation_plan(
        *counts(validation),
        batch_size=config.evaluation.batch_size,
        row_length=choose_length(validation, config.evaluation.batch_size),
        microbatch_rows=microbatch_rows,
    )
    rows = local_rows(mesh, microbatch_rows)
    return loop.Split(training, train_plan, rows), loop.Split(validation, validation_plan, rows)


def _initial_state(
    config: Config,
    model: RewardModel,
    trainer: Trainer,
    workdir: Workdir,
    checkpoints: Checkpoints,
    iterator: grain.DatasetIterator,
    head_run: features.HeadRun | None,
    adapters: continued.StartAdapters | None,
    progress: bool,
) -> State:
    """Returns the train state, in order of precedence.

    1. The workdir's latest checkpoint, which also sets the iterator; what is not trained is read again, by 2 or 3.
    2. Pretrained parameters from `config.model.path`, with a new optimizer state.
    3. Random parameters.

    Args:
      adapters: of the model at `config.model.path`; None if there is a checkpoint.
    """
    if (step := checkpoints.latest()) is not None:
        saved = checkpoints.restore(step, trainer.abstract_state(), iterator)
        if head_run:
            frozen = partition.store(head_run.params, trainer.trainable, trainer.model)[1]
        else:
            frozen = loading.frozen_params(config, model, trainer.mesh, workdir)
        if head_run or frozen:
            workdir.check_frozen(head_run.checksum if head_run else partition.checksum(frozen))
        return saved | {"frozen": frozen}
    adapters = adapters or continued.StartAdapters()
    start = lambda: loading.start_params(config, model, trainer.mesh, adapters, progress)  # 2, or else 3
    params = head_run.params if head_run else start()
    state = jax.jit(trainer.init, out_shardings=trainer.shardings(), donate_argnums=0)(params)
    head = state["frozen"].get("head")
    if head is not None and not head["kernel"].any():
        raise InputError(
            f"config.train.trainable is {config.train.trainable!r}, which leaves the new reward head untrained; it is "
            "zero, and so are all gradients: add `^head/` to the regex, or start from a reward model"
        )
    if head_run or state["frozen"]:
        checksum = head_run.checksum if head_run else partition.checksum(state["frozen"])
        workdir.save_frozen(adapters.base or config.model.path, checksum)
    return state
