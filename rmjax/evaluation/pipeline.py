"""Scoring data offline: from a model's PATH and records to rewards, prediction lines and files."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from rmjax.core.errors import InputError
from rmjax.core.mesh import make_mesh, row_shards
from rmjax.core.processes import all_equal
from rmjax.data.records.parsers import ReadOptions
from rmjax.data.records.sources import BadRecord
from rmjax.data.schema import Comparison, Tree
from rmjax.data.tokens.rendering import make_trees
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.evaluation.scoring import Scorer
from rmjax.models.loading import load_model

CHUNK = 256  # records that are tokenised, scored and written together
_ACCELERATOR_ROWS = 8  # rows per device of a batch by default; on CPU one row keeps all cores busy
Item = Comparison | BadRecord


@dataclasses.dataclass(frozen=True)
class RewardPipeline:
    """A loaded reward model with all that it takes to score text.

    Attributes:
      max_length: the longest conversation that is scored, in tokens.
      options: how prompt, response and steps become a conversation, as in training.
      metadata: rmjax.json, or what of it a workdir knows.
    """

    scorer: Scorer
    tokenizer: Tokenizer
    max_length: int
    options: ReadOptions
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the A rewards of a response."""
        return self.scorer.model.head.attributes

    def with_data_options(self, format: str, columns: Sequence[str], strings: str | None) -> "RewardPipeline":
        """Returns the pipeline for data of this format; strings are taken as in training where `strings` is None."""
        options = dataclasses.replace(
            self.options, format=format, columns=tuple(columns), strings=strings or self.options.strings
        )
        return dataclasses.replace(self, options=options)

    def trees(self, comparisons: Sequence[Comparison]) -> list[Tree | str]:
        """Tokenises comparisons; in the place of one that cannot be scored stands the reason."""
        return [self._fitting(tree) for tree in make_trees(comparisons, self.tokenizer)]

    def _fitting(self, tree: Tree | str) -> Tree | str:
        if isinstance(tree, Tree) and tree.longest > self.max_length:
            return f"{tree.longest} tokens, more than max_length = {self.max_length}; raise --max_length, or shorten it"
        return tree

    def merged(self, rewards: np.ndarray) -> np.ndarray:
        """Returns the one reward [R] by which responses are ranked, of rewards [R, A]."""
        weights = self.scorer.model.head.merge or [1 / len(self.attributes)] * len(self.attributes)
        return rewards @ np.asarray(weights, np.float32)

    def rewards(self, items: Sequence[Item]) -> list[np.ndarray | str]:
        """Returns the rewards float32 [K, A] of each item, or the reason why it has none."""
        good = [item for item in items if isinstance(item, Comparison)]
        trees = self.trees(good)
        usable = [tree for tree in trees if isinstance(tree, Tree)]
        _check_alike(self.scorer, usable)
        scored = iter(self.scorer.score(usable))
        found = iter([next(scored) if isinstance(tree, Tree) else tree for tree in trees])
        return [_checked(next(found)) if isinstance(item, Comparison) else item.reason for item in items]


def _check_alike(scorer: Scorer, trees: Sequence[Tree]) -> None:
    """Raises InputError if the processes would not score the same trees in the same way."""
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(repr((scorer.model, scorer.row_length, scorer.rows)).encode())
    for tree in trees:
        for part in (tree.prefix, *tree.branches):
            digest.update(part.tobytes() + b"|")
    if not all_equal(digest.digest()):
        raise InputError(
            "the processes score different records, or with different flags or models; give each the same "
            "--input, --model and flags"
        )


def _checked(rewards: np.ndarray | str) -> np.ndarray | str:
    if isinstance(rewards, str) or np.isfinite(rewards).all():
        return rewards
    return f"the model's rewards are {rewards.tolist()}, not finite; check the model's weights, or score in float32"


def load_pipeline(
    path: str, *, max_length: int = 0, rows_per_device: int = 0, dtype: str = "float32"
) -> RewardPipeline:
    """Loads a model and its tokenizer on all devices.

    Args:
      path: artifact, Hugging Face directory with a head, or workdir.
      max_length: 0 takes the model's.
      rows_per_device: of a batch; 0 chooses by the kind of device.

    Raises:
      InputError: there is no usable model, or max_length exceeds what it was made for.
    """
    mesh = make_mesh((-1, 1, 1, 1))
    with jax.set_mesh(mesh):
        loaded = load_model(path, mesh=mesh, dtype=dtype)
    positions = loaded.model.decoder.max_positions
    if not 0 <= max_length <= positions:
        raise InputError(f"max_length is {max_length}; the model {path} was made for 1 to {positions} positions")
    tokenizer = Tokenizer.load(str(loaded.directory))
    tokenizer.check_vocabulary(loaded.model.decoder.vocab_size)
    rows = rows_per_device or (1 if mesh.devices.flat[0].platform == "cpu" else _ACCELERATOR_ROWS)
    max_length = max_length or loaded.max_length
    scorer = Scorer(loaded.model, loaded.params, mesh, max_length, rows * row_shards(mesh))
    options = ReadOptions(**loaded.metadata.get("data_options", {}))
    return RewardPipeline(scorer, tokenizer, max_length, options, loaded.metadata)


def prediction(item: Item, rewards: np.ndarray | str, attributes: Sequence[str]) -> dict[str, Any]:
    """Returns a line of predictions: the record's own fields and `rewards`, or `error`.

    `rewards` has a number a response, or an object {attribute: value} a response where the head has several.
    """
    record = plain_record(item.record)
    if isinstance(rewards, str):
        return record | {"error": f"{item.where}: {rewards}"}
    if len(attributes) == 1:
        return record | {"rewards": [float(value) for value in rewards[:, 0]]}
    return record | {"rewards": [dict(zip(attributes, map(float, row), strict=True)) for row in rewards]}


def plain_record(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record as JSON has it; what JSON cannot say (Parquet's times and decimals) as text."""
    return json.loads(json.dumps(record, default=str))


def predict(pipeline: RewardPipeline, items: Iterable[Item], progress: tqdm.tqdm) -> Iterator[list[tuple[Item, Any]]]:
    """Yields chunks of (item, its rewards or the reason why it has none), in order."""
    items = iter(items)
    while chunk := list(itertools.islice(items, CHUNK)):
        yield list(zip(chunk, pipeline.rewards(chunk), strict=True))
        progress.update(len(chunk))
