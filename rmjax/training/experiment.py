"""A whole training run: data, model, batch plans, train state, loop and report."""

import dataclasses
import pathlib
from collections.abc import Sequence

import grain
import jax
from jax.sharding import Mesh

from rmjax.core import config as configs
from rmjax.core.config import Config
from rmjax.core.errors import InputError
from rmjax.core.mesh import AXES, make_mesh, row_shards
from rmjax.core.processes import all_equal
from rmjax.data.packing.pipeline import make_iterator
from rmjax.data.packing.plan import choose_row_length, evaluation_plan, make_mixture, short_row_length, training_plan
from rmjax.data.records.read import SYNTHETIC
from rmjax.data.tokens.dataset import TokenizedDataset, concatenate
from rmjax.data.tokens.load import load_dataset
from rmjax.data.tokens.tokenize import DatasetOptions
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import loading
from rmjax.models.architecture import HeadConfig
from rmjax.models.attention import KERNELS
from rmjax.models.decoder import RewardModel
from rmjax.models.workdir import Workdir
from rmjax.training import loop
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.logging import OpenWriter
from rmjax.training.objectives import make_head, make_objective
from rmjax.training.optimizer import make_optimizer, make_schedule
from rmjax.training.step import State, Trainer, local_rows

Mixture = tuple[tuple[int, int], ...]  # see `BatchPlan.mixture`


def train(config: Config, path: pathlib.Path, writers: Sequence[OpenWriter] = ()) -> loop.TrainingResult:
    """Trains the model of `config` in the workdir at `path`, resuming from its latest checkpoint if there is one.

    `writers` of metrics are used in addition to `logging.WRITERS`. Raises InputError if the configuration, the data,
    the model and the workdir do not fit together.
    """
    configs.check(config)
    configs.check_choice("model.attention", config.model.attention, ("auto", *KERNELS))
    workdir = Workdir(path)
    if workdir.created:
        configs.check_same_run(config, workdir.config_file)
    tokenizer_path = config.data.tokenizer or (config.model.path and loading.tokenizer_directory(config.model.path))
    tokenizer = Tokenizer.load(tokenizer_path)
    training, validation, mixture = _load_data(config, tokenizer)
    head = make_head(config.objective, training)
    objective = make_objective(config.objective, head)
    training, validation = (dataset.with_attributes(head.attributes) for dataset in (training, validation))
    objective.check_data("train", training)
    objective.check_data("validation", validation)
    data_hash = training.fingerprint()
    _check_same_data(workdir, data_hash)
    _warn_of_overlap(training, validation)
    mesh = make_mesh([config.mesh[axis] for axis in AXES])
    with jax.set_mesh(mesh):
        model = _make_model(config, tokenizer, head, mesh)
        splits = _make_plans(config, training, validation, mixture, mesh)
        plan = splits[0].plan
        schedule = make_schedule(config.optimizer, plan.num_steps)
        optimizer = make_optimizer(config.optimizer, schedule)
        trainer = Trainer(model, objective, optimizer, schedule, config.optimizer.grad_clip, mesh)
        if jax.process_index() == 0 and not workdir.created:
            tokenizer.save(workdir.tokenizer_directory)
            workdir.create(config, model, data_hash)
        checkpoints = Checkpoints(workdir.checkpoint_directory, config.checkpoint.keep, config.checkpoint.best)
        iterator = make_iterator(training, plan, splits[0].rows)
        state = _initial_state(config, trainer, checkpoints, iterator)
        _print_start(config, trainer, splits, workdir, int(state["step"]))
        result = loop.run(config, trainer, state, iterator, *splits, checkpoints, workdir, writers)
    _print_end(config, result, workdir, plan.num_steps)
    return result


def _load_data(config: Config, tokenizer: Tokenizer) -> tuple[TokenizedDataset, TokenizedDataset, Mixture]:
    """Returns the training and the validation dataset, and the mixture of the training sources (() for none)."""
    data = config.data
    if SYNTHETIC in data.validation and SYNTHETIC not in data.train:
        raise InputError(
            f"config.data.validation is the built-in data, {SYNTHETIC!r}, and config.data.train is not: validation "
            "metrics and the best checkpoint would be unrelated to the training data; set config.data.validation"
        )
    training, validation = (_load_sources(data, tokenizer, split) for split in ("train", "validation"))
    mixture = make_mixture([len(dataset) for dataset in training], data.weights) if data.weights else ()
    return concatenate(training), concatenate(validation), mixture


def _load_sources(data: Config, tokenizer: Tokenizer, split: str) -> list[TokenizedDataset]:
    """Returns the dataset of each source of a split; the limit applies to each."""
    if not data[split]:
        raise InputError(f"config.data.{split} is empty; set a path, a glob, a hub name, or {SYNTHETIC!r}")
    names = {field.name for field in dataclasses.fields(DatasetOptions)} & set(data.keys())
    options = DatasetOptions(**{name: data[name] for name in names}, limit=data[f"{split}_limit"])
    datasets = []
    for source in data[split]:
        size = data[f"synthetic_{split}"]
        dataset, report = load_dataset((source,), tokenizer, options, split=split, synthetic_size=size)
        print(f"{split}: {report}")
        datasets.append(dataset)
    return datasets


def _check_same_data(workdir: Workdir, data_hash: str) -> None:
    """Raises InputError if the training data differs from the data that the run began with, or between processes."""
    if workdir.data_hash() not in (None, data_hash):
        raise InputError(
            f"{workdir} holds a run with other training data than config.data.train gives now; restore the data, or "
            "choose another --workdir"
        )
    if not all_equal(bytes.fromhex(data_hash)):
        raise InputError("the training data differs between processes; give every process the same files")


def _warn_of_overlap(training: TokenizedDataset, validation: TokenizedDataset) -> None:
    if common := validation.overlap(training):
        print(
            f"warning: {len(common):,} of {len(validation):,} validation comparisons are in the training data too "
            f"(first: {validation.where(common[0])}); their validation metrics do not measure generalization"
        )


def _make_model(config: Config, tokenizer: Tokenizer, head: HeadConfig, mesh: Mesh) -> RewardModel:
    """Returns the model, checked against the tokenizer, the mesh and the longest conversation."""
    model = loading.make_model(config.model, len(tokenizer), head)
    decoder, tensor = model.decoder, mesh.shape["tensor"]
    tokenizer.check_vocabulary(decoder.vocab_size)
    for kind, count in (("query", decoder.num_heads), ("key/value", decoder.num_kv_heads)):
        if count % tensor:
            raise InputError(
                f"config.mesh.tensor is {tensor}, which does not divide the model's {count} {kind} heads; choose a "
                "common divisor of the numbers of query and key/value heads"
            )
    if config.data.max_length > decoder.max_positions:
        raise InputError(
            f"config.data.max_length is {config.data.max_length}; the model supports at most {decoder.max_positions}"
        )
    return model


def _make_plans(
    config: Config, training: TokenizedDataset, validation: TokenizedDataset, mixture: Mixture, mesh: Mesh
) -> tuple[loop.Split, loop.Split]:
    """Returns the training and the validation split with their batch plans."""
    row_length, multiple = config.data.row_length, mesh.shape["sequence"]
    microbatch_rows = config.train.rows_per_device * row_shards(mesh)
    if row_length % multiple:
        raise InputError(f"config.data.row_length is {row_length}; expected a multiple of mesh.sequence, {multiple}")

    def choose_length(dataset: TokenizedDataset, batch_size: int, **options: bool) -> int:
        longest = int(dataset.lengths.argmax())
        if row_length and dataset.lengths[longest] > row_length:
            raise InputError(
                f"{dataset.where(longest)}: the comparison has {dataset.lengths[longest]} tokens, more than "
                f"data.row_length = {row_length}; raise it, or set it to 0"
            )
        return row_length or choose_row_length(dataset.lengths, batch_size, microbatch_rows, multiple, **options)

    counts = lambda dataset: (dataset.lengths, dataset.readout_counts, dataset.edge_counts)
    chosen = choose_length(training, config.train.batch_size, short_microbatches=True)
    train_plan = training_plan(
        *counts(training),
        batch_size=config.train.batch_size,
        steps=config.train.steps,
        epochs=config.train.epochs,
        seed=config.train.seed,
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
    config: Config, trainer: Trainer, checkpoints: Checkpoints, iterator: grain.DatasetIterator
) -> State:
    """Returns the train state, in order of precedence.

    1. The workdir's latest checkpoint, which also sets the iterator.
    2. Pretrained parameters from `config.model.path`, with a new optimizer state.
    3. Random parameters.
    """
    if (step := checkpoints.latest()) is not None:
        return checkpoints.restore(step, trainer.abstract_state(), iterator)
    key = jax.random.key(config.train.seed)
    params = loading.initial_params(config.model, trainer.model, trainer.mesh, key)  # 2, or else 3
    return jax.jit(trainer.init, out_shardings=trainer.shardings(), donate_argnums=0)(params)


def _print_start(config: Config, trainer: Trainer, splits: Sequence[loop.Split], workdir: Workdir, step: int) -> None:
    plan, mesh = splits[0].plan, trainer.mesh
    count = sum(leaf.size for leaf in jax.tree.leaves(trainer.abstract_state()["params"]))
    if step:
        print(f"resuming {workdir} at step {step} of {plan.num_steps}")
    print(
        f"model: {count / 1e6:,.1f}M parameters, {config.model.dtype}; mesh: {dict(mesh.shape)} on "
        f"{mesh.devices.flat[0].device_kind}\n"
        f"plan: {plan.num_steps:,} steps of {plan.batch_size} comparisons, rows of {plan.row_length} tokens "
        f"({plan.sizes.fill:.0%} filled), up to {plan.sizes.microbatches} microbatches of {plan.microbatch_rows} rows "
        f"per step; {len(splits[1].dataset):,} validation comparisons\n"
        f"workdir: {workdir}",
        flush=True,
    )


def _print_end(config: Config, result: loop.TrainingResult, workdir: Workdir, steps: int) -> None:
    if result.stopped:
        print(
            f"stopped at step {result.step} of {steps} after saving a checkpoint; the same command with "
            f"--workdir={workdir} resumes"
        )
        return
    line = f"done: {steps:,} steps, validation {loop.summarize(result.validation)}"
    if "accuracy_ceiling" in result.validation:
        share = result.validation["accuracy"] / result.validation["accuracy_ceiling"]
        line += f"; {share:.1%} of the best reachable accuracy"
    print(
        f"{line}\n"
        f"written:  {workdir}/ (config.json, metrics.jsonl, learning_curve.svg, tensorboard/, checkpoints/)\n"
        f"evaluate: python -m rmjax.evaluate --model={workdir} --data={','.join(config.data.validation)} "
        f"--output={workdir}/evaluation\n"
        f"export:   python -m rmjax.export --workdir={workdir} --output={workdir}/artifact\n"
        f"serve:    python -m rmjax.serve --model={workdir}/artifact --grpc_port=8001"
    )
