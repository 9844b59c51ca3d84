"""A whole training run: data, plan, model, state, loop, and what is said about it."""

import dataclasses
import pathlib

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from rmjax.core import config as configs
from rmjax.core.errors import InputError
from rmjax.core.mesh import AXES, make_mesh, row_shards
from rmjax.core.processes import all_equal
from rmjax.data.packing.pipeline import make_iterator
from rmjax.data.packing.plan import choose_row_length, evaluation_plan, mix, short_row_length, training_plan
from rmjax.data.tokens.dataset import TokenizedDataset, concatenate
from rmjax.data.tokens.load import SYNTHETIC, Options, load_dataset
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import loading
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel
from rmjax.models.workdir import Workdir
from rmjax.training import loop
from rmjax.training.checkpoints import Checkpoints
from rmjax.training.objectives import Objective, make_objective
from rmjax.training.optimizer import make_optimizer, make_schedule
from rmjax.training.step import Trainer, local_rows

Config = ml_collections.ConfigDict
# What a comparison may lack that a term of the objective needs.
_MISSING = {"edges": "preference", "labels": "label of the head's attributes"}


def train(config: Config, path: pathlib.Path) -> loop.Outcome:
    """Trains the configuration in the workdir at `path`, from its latest checkpoint if there is one."""
    configs.check(config)
    workdir = Workdir(path)
    if workdir.created:
        configs.check_same_run(config, workdir.config_file)
    _check_sources(config)
    tokenizer = Tokenizer.load(_tokenizer_path(config))
    (training, sizes), (validation, _) = (_load(config, tokenizer, split) for split in ("train", "validation"))
    head = make_head(config.objective, training)
    training, validation = (dataset.with_attributes(head.attributes) for dataset in (training, validation))
    objective = make_objective(config.objective, head.attributes, head.scale)
    for name, dataset in (("train", training), ("validation", validation)):
        _check_data(name, dataset, objective)
    head = dataclasses.replace(head, merge=objective.merge)
    fingerprint = training.fingerprint()
    _check_same_data(workdir, fingerprint)
    if common := validation.shared(training):
        print(
            f"warning: {len(common):,} of {len(validation):,} validation comparisons are in the training data too, "
            f"first {validation.where[common[0]]}; what validation says of them is not of new data"
        )
    mesh = make_mesh([config.mesh[axis] for axis in AXES])
    with jax.set_mesh(mesh):
        model = loading.make_model(config.model, len(tokenizer), head)
        tokenizer.check_vocabulary(model.decoder.vocab_size)
        _check_heads(model.decoder, mesh)
        if config.data.max_length > model.decoder.max_positions:
            raise InputError(
                f"config.data.max_length is {config.data.max_length}; the model was made for at most "
                f"{model.decoder.max_positions} positions"
            )
        mixture = mix(sizes, config.data.weights) if config.data.weights else ()
        training, validation = _plans(config, training, validation, mesh, mixture)
        steps = training.plan.num_steps
        schedule = make_schedule(config.optimizer, steps)
        optimizer = make_optimizer(config.optimizer, schedule)
        trainer = Trainer(model, objective, optimizer, schedule, config.optimizer.grad_clip, mesh)

        if jax.process_index() == 0 and not workdir.created:
            tokenizer.save(workdir.tokenizer_directory)
            workdir.create(config, model, fingerprint)
        checkpoints = Checkpoints(workdir.checkpoint_directory, config.checkpoint.keep, config.checkpoint.best)
        rows = local_rows(mesh, training.plan.microbatch_rows)
        iterator = make_iterator(training.dataset, training.plan, rows)
        # The state comes from, in this order: 1. the workdir's checkpoint; 2. pretrained weights; 3. random numbers.
        abstract = trainer.abstract_state()
        if (step := checkpoints.latest()) is not None:
            state = checkpoints.restore(step, abstract, iterator)
            print(f"resuming {workdir} at step {step} of {steps}")
        else:
            params = loading.initial_params(config.model, model, mesh, jax.random.key(config.train.seed))
            shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            state = jax.jit(trainer.init, out_shardings=shardings, donate_argnums=0)(params)
        _describe(config, model, training, validation, mesh, workdir)
        validate_every = config.evaluation.every or max(1, steps // 10)
        timing = loop.Schedule(
            validate_every, config.checkpoint.every or validate_every, config.train.log_every, config.checkpoint.best
        )
        outcome = loop.run(trainer, state, iterator, rows, training, validation, timing, checkpoints, workdir)
    _conclude(outcome, config, workdir, steps)
    return outcome


def _check_sources(config: Config) -> None:
    made = [
        SYNTHETIC in ((sources,) if isinstance(sources, str) else sources)
        for sources in (config.data.train, config.data.validation)
    ]
    if made == [False, True]:
        raise InputError(
            f"config.data.validation is the built-in data, {SYNTHETIC!r}, and config.data.train is not; "
            "what validation says, and which checkpoint it picks, would have nothing to do with the "
            "training data: set it"
        )


def _tokenizer_path(config: Config) -> str:
    if config.data.tokenizer or not config.model.path:
        return config.data.tokenizer
    return loading.tokenizer_directory(config.model.path)


def _load(config: Config, tokenizer: Tokenizer, split: str) -> tuple[TokenizedDataset, list[int]]:
    """Returns all sources of a split, and the size of each; the limit is of each."""
    data = config.data
    limit = data.train_limit if split == "train" else data.validation_limit
    names = {field.name for field in dataclasses.fields(Options)} & set(data.keys())
    options = Options(**{name: data[name] for name in names}, limit=limit)
    size = data.synthetic_train if split == "train" else data.synthetic_validation
    sources = (data[split],) if isinstance(data[split], str) else data[split]
    if not sources:
        raise InputError(f"config.data.{split} is empty; set a path, a glob, a hub name, or 'synthetic'")
    datasets = []
    for source in sources:
        dataset, report = load_dataset((source,), tokenizer, options, split=split, synthetic_size=size)
        print(f"{split}: {report}")
        datasets.append(dataset)
    return concatenate(datasets), [len(dataset) for dataset in datasets]


def make_head(config: Config, dataset: TokenizedDataset) -> HeadConfig:
    """Returns the head that an objective over this data wants: its attributes, and the scale of their labels.

    Args:
      config: the section `objective`.
    """
    labelled = any(term in config.name for term in ("regression", "process"))
    attributes = tuple(config.attributes) or (dataset.attributes if labelled else ()) or ("reward",)
    if not config.standardize:
        return HeadConfig(attributes)
    labels = dataset.with_attributes(attributes).labels.astype(np.float64)
    for name, column in zip(attributes, labels.T, strict=True):
        if not np.nanstd(column) > 0:
            raise InputError(
                f"config.objective.standardize: the training labels of {name!r} do not vary; leave the "
                "attribute out of config.objective.attributes"
            )
    scale, shift = np.nanstd(labels, axis=0), np.nanmean(labels, axis=0)
    return HeadConfig(attributes, scale=tuple(scale.tolist()), shift=tuple(shift.tolist()))


def _check_data(name: str, dataset: TokenizedDataset, objective: Objective) -> None:
    """Raises InputError if a comparison says nothing that a term of the objective could learn from."""
    if not len(dataset):
        raise InputError(f"config.data.{name}: no usable comparison is left; see the counts above")
    known = {"edges": dataset.edge_counts > 0}
    rows = np.repeat(np.arange(len(dataset)), dataset.readout_counts)
    known["labels"] = np.bincount(rows, ~np.isnan(dataset.labels).all(1), minlength=len(dataset)) > 0
    needs = set(objective.needs.values())
    for term, kind in objective.needs.items():
        if not known[kind].any():
            raise InputError(
                f"config.data.{name}: no record has a {_MISSING[kind]}, which {term!r} learns from; "
                f"if they are there (first in {dataset.where[0]}), set config.data.format"
            )
    if "plackett_luce" in objective.needs and len(soft := dataset.edges[~np.isin(dataset.edges[:, 5], (0.5, 1))]):
        raise InputError(
            f"config.data.{name}: a preference is only {soft[0, 5]:g} probable, and plackett_luce knows "
            "no soft labels; use pairwise or bradley_terry"
        )
    useful = np.any([known[kind] for kind in needs], axis=0)
    if not useful.all():
        i = int(np.flatnonzero(~useful)[0])
        lacking = " nor ".join(_MISSING[kind] for kind in sorted(needs))
        raise InputError(
            f"{dataset.where[i]}: it has no {lacking}, which the objective ({', '.join(objective.needs)}) learns from"
        )


def _check_heads(decoder: DecoderConfig, mesh: Mesh) -> None:
    for what, count in (("query", decoder.num_heads), ("key/value", decoder.num_kv_heads)):
        if count % mesh.shape["tensor"]:
            raise InputError(
                f"config.mesh.tensor is {mesh.shape['tensor']}, which does not divide the model's {count} "
                f"{what} heads; choose a common divisor of both"
            )


def _plans(
    config: Config,
    training: TokenizedDataset,
    validation: TokenizedDataset,
    mesh: Mesh,
    mixture: tuple[tuple[int, int], ...],
) -> tuple[loop.Split, loop.Split]:
    rows = config.train.rows_per_device * row_shards(mesh)
    multiple = mesh.shape["sequence"]
    row_length = config.data.row_length
    if row_length % multiple:
        raise InputError(f"config.data.row_length is {row_length}; mesh.sequence = {multiple} must divide it")

    def length(dataset: TokenizedDataset, batch_size: int, cut: bool) -> int:
        chosen = row_length or choose_row_length(dataset.lengths, batch_size, rows, multiple, cut=cut)
        if (longest := int(dataset.lengths.argmax())) >= 0 and dataset.lengths[longest] > chosen:
            raise InputError(
                f"{dataset.where[longest]}: {dataset.lengths[longest]} tokens in all, more than "
                f"data.row_length = {chosen}; raise it, or set it to 0"
            )
        return chosen

    size = config.train.batch_size
    chosen = length(training, size, cut=True)
    plan = training_plan(
        training.lengths,
        training.readout_counts,
        training.edge_counts,
        batch_size=size,
        steps=config.train.steps,
        epochs=config.train.epochs,
        seed=config.train.seed,
        mixture=mixture,
        row_length=chosen,
        short_length=short_row_length(chosen, multiple),
        microbatch_rows=rows,
    )
    size = config.evaluation.batch_size
    validating = evaluation_plan(
        validation.lengths,
        validation.readout_counts,
        validation.edge_counts,
        batch_size=size,
        row_length=length(validation, size, cut=False),
        microbatch_rows=rows,
    )
    return loop.Split(training, plan), loop.Split(validation, validating)


def _check_same_data(workdir: Workdir, found: str) -> None:
    """Raises InputError if the training data differs from when the run began, or between processes."""
    if workdir.data_hash() not in (None, found):
        raise InputError(
            f"{workdir} holds a run whose training data was other than config.data.train is now; bring it "
            "back, or choose another --workdir"
        )
    if not all_equal(bytes.fromhex(found)):
        raise InputError("the processes read different training data; give each the same files")


def _describe(
    config: Config, model: RewardModel, training: loop.Split, validation: loop.Split, mesh: Mesh, workdir: Workdir
) -> None:
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))
    plan, sizes = training.plan, training.plan.sizes
    print(
        f"model: {count / 1e6:,.1f}M parameters, {config.model.dtype}; mesh: {dict(mesh.shape)} on "
        f"{mesh.devices.flat[0].device_kind}\n"
        f"plan: {plan.num_steps:,} steps of {plan.batch_size} comparisons, rows of {plan.row_length} tokens "
        f"({sizes.fill:.0%} filled), up to {sizes.microbatches} microbatches of {plan.microbatch_rows} rows a step; "
        f"{len(validation.dataset):,} validation comparisons\n"
        f"workdir: {workdir}",
        flush=True,
    )


def _conclude(outcome: loop.Outcome, config: Config, workdir: Workdir, steps: int) -> None:
    if outcome.stopped:
        print(
            f"stopped at step {outcome.step} of {steps} and saved; the same command with --workdir={workdir} continues"
        )
        return
    line = f"done: {steps:,} steps, validation {loop.headline(outcome.validation)}"
    if "accuracy_ceiling" in outcome.validation:
        ceiling = outcome.validation["accuracy_ceiling"]
        line += f"; {outcome.validation['accuracy'] / ceiling:.1%} of the best reachable accuracy"
    data = ",".join(config.data.validation)
    print(
        f"{line}\n"
        f"made:     {workdir}/ (config.json, metrics.jsonl, learning_curve.svg, tensorboard/, checkpoints/)\n"
        f"evaluate: python -m rmjax.evaluate --model={workdir} --data={data} --output={workdir}/evaluation\n"
        f"export:   python -m rmjax.export --workdir={workdir} --output={workdir}/artifact\n"
        f"serve:    python -m rmjax.serve --model={workdir}/artifact --grpc_port=8001"
    )
