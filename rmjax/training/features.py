"""Runs that train the head alone: its features are computed once, kept on disk, and read in every step.

Axis letters: M microbatches, B rows, R readouts, D features.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rmjax.core import pytree
from rmjax.core.config import Config
from rmjax.core.errors import InputError
from rmjax.core.files import cache_directory
from rmjax.core.mesh import replicated
from rmjax.core.progress import progress_bar
from rmjax.core.text import count_of
from rmjax.data.packing.features import FeatureDataset, FeatureStore
from rmjax.data.packing.pipeline import make_iterator
from rmjax.data.packing.plan import choose_row_length, evaluation_plan
from rmjax.data.schema import Tree, packed_spec
from rmjax.data.tokens import cache
from rmjax.data.tokens.dataset import TokenizedDataset
from rmjax.models import loading, partition
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.feature_model import FeatureModel
from rmjax.training.datasets import SPLITS, Log
from rmjax.training.loop import Split
from rmjax.training.losses import Batch
from rmjax.training.step import microbatch, shard_batch

_BATCH_SIZE = 64  # comparisons that are computed and written at a time; a killed run loses as many
_VERSION = 1  # of the stores; raise it when what a model computes at the readouts changes


@dataclasses.dataclass(frozen=True)
class HeadRun:
    """What takes the place of the model and its data in a run that trains the head on features.

    Attributes:
      model: the head.
      splits: with plans whose rows hold one position for each readout.
      params: of the head, at the start of the run.
      checksum: of all parameters of the whole model that are not trained.
    """

    model: FeatureModel
    splits: tuple[Split, Split]
    params: Params
    checksum: str


def usable(config: Config, model: RewardModel) -> bool:
    """Returns whether the run trains the head alone, and may keep features; a run of several processes keeps none."""
    head_only = partition.trains_head_only(partition.trainable_pattern(config), model)
    return config.train.cache_features and head_only and jax.process_count() == 1


def prepare(
    config: Config, model: RewardModel, mesh: Mesh, splits: tuple[Split, Split], log: Log, progress: bool
) -> HeadRun | None:
    """Computes the features that the plans of `splits` need and the cache does not have; None if it has no room.

    Must be called with `mesh` set. Reports what is computed and what is reused by `log`. What has been computed when
    the process is stopped or killed is kept.

    Raises:
      InputError: the parameters cannot be loaded, or hidden states are not finite.
    """
    pattern = partition.trainable_pattern(config)
    trained, frozen = partition.store(loading.start_params(config, model, mesh, progress=progress), pattern, model)
    head = pytree.merge(trained, {name: part for name, part in frozen.items() if name == "head"})
    decoder = {"decoder": frozen["decoder"]}
    computer = _Computer(model, decoder, mesh, log, progress)
    try:
        training, validation = map(computer.with_features, SPLITS, splits)
    except OSError as error:
        log(f"warning: features cannot be kept ({error}); every step computes the whole model")
        return None
    return HeadRun(FeatureModel(model), (training, validation), head, partition.checksum(frozen))


@dataclasses.dataclass(frozen=True)
class _Computer:
    """Computes features with a model and the parameters `params` of its decoder."""

    model: RewardModel
    params: Params
    mesh: Mesh
    log: Log
    progress: bool

    def with_features(self, name: str, split: Split) -> Split:
        """Returns a split with the features of its dataset; raises OSError if they cannot be written."""
        dataset, plan = split.dataset, split.plan
        path, shape = self._path(dataset), self._shape(split)
        needed = plan.drawn()
        open_store = lambda: FeatureStore(
            path, (int(dataset.readout_offsets[-1]), *shape.shape), str(shape.dtype), len(dataset)
        )
        store = open_store()
        if store.done[needed].all():
            self.log(f"{name}: the features of {count_of(len(needed), 'comparison')} are reused from {path}")
        else:
            wait = lambda: self.log(f"{name}: waiting for another process that computes the features in {path}")
            with cache.locked(path, wait):
                store = open_store()
                if len(missing := needed[~store.done[needed]]):
                    self.log(
                        f"{name}: computing the features of {count_of(len(missing), 'comparison')}, kept in {path}"
                    )
                    self._fill(store, missing, split)
        length = choose_row_length(plan.readouts, plan.batch_size, plan.microbatch_rows)
        plan = dataclasses.replace(plan, lengths=plan.readouts, row_length=length, short_length=0)
        return dataclasses.replace(split, dataset=FeatureDataset(**vars(dataset), store=store), plan=plan)

    def _path(self, dataset: TokenizedDataset) -> pathlib.Path:
        """Returns the store's directory, named by what the features depend on, except for float rounding."""
        parameters, inputs = partition.checksum(self.params), dataset.inputs_fingerprint()
        key = [_VERSION, parameters, *self.model.features_identity, inputs]
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
        return cache_directory() / "features" / name

    def _shape(self, split: Split) -> jax.ShapeDtypeStruct:
        """Returns the shape [D] and the dtype of the features of a readout."""
        plan = split.plan
        spec = packed_spec(plan.microbatch_rows, plan.row_length, 1, 1, len(split.dataset.attributes))
        rows = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype, _) in spec.items()}
        return jax.eval_shape(lambda rows: self.model.features(self.params, rows)[0, 0], rows)

    def _fill(self, store: FeatureStore, missing: np.ndarray, split: Split) -> None:
        """Computes and writes the features of the comparisons `missing`; raises OSError."""
        dataset, offsets = split.dataset, np.asarray(split.dataset.readout_offsets)
        plan = evaluation_plan(
            *(counts[missing] for counts in (dataset.lengths, dataset.readout_counts, dataset.edge_counts)),
            batch_size=_BATCH_SIZE,
            row_length=split.plan.row_length,
            microbatch_rows=split.plan.microbatch_rows,
        )
        with progress_bar(len(missing), "features", "comparison", disable=not self.progress) as bar:
            for step, item in enumerate(make_iterator(_Subset(dataset, missing), plan, split.rows)):
                batch = shard_batch(self.mesh, item["batch"], plan.microbatch_rows, split.rows)
                features = np.asarray(self._compute(self.params, batch, item["microbatches"]))
                # In the order of the rows, which is that of the used entries of their readout tables.
                comparisons = missing[[i for row in plan.rows(step) for i in row]]
                readouts = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in comparisons])
                features = features[item["batch"]["readout_group"] > 0]
                if not np.isfinite(features).all():
                    first = np.searchsorted(offsets, readouts[~np.isfinite(features).all(axis=-1)][0], side="right") - 1
                    raise InputError(
                        f"{dataset.where(first)}: the hidden states are not finite; check the weights of "
                        "config.model.path, or set config.model.dtype to float32"
                    )
                store.write(comparisons, readouts, features)
                bar.update(len(comparisons))

    @functools.cached_property
    def _compute(self) -> Callable[[Params, Batch, jax.Array], jax.Array]:
        """A function (params, batch [M, B, ...], microbatches) -> features [M, B, R, D]; see `Trainer`."""

        def compute(params: Params, batch: Batch, microbatches: jax.Array) -> jax.Array:
            features = lambda i: self.model.features(params, microbatch(batch, i))
            shape = jax.eval_shape(features, 0)
            out = jnp.zeros((len(batch["tokens"]), *shape.shape), shape.dtype)
            return jax.lax.fori_loop(0, microbatches[1], lambda i, out: out.at[i].set(features(i)), out)

        return jax.jit(compute, out_shardings=replicated(self.mesh))


@dataclasses.dataclass(frozen=True)
class _Subset:
    """The comparisons `indices` of a dataset, for `make_iterator`."""

    dataset: TokenizedDataset
    indices: np.ndarray

    @property
    def attributes(self) -> tuple[str, ...]:
        return self.dataset.attributes

    def tree(self, i: int) -> Tree:
        return self.dataset.tree(int(self.indices[i]))

    def model_inputs(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return batch
