"""Offline scoring: a reward model loaded with its tokenizer, rewards of records, and lines of prediction files."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from rmjax.core.config_checks import check_date
from rmjax.core.errors import InputError, non_finite_error
from rmjax.core.mesh import make_mesh, parse_sizes, row_shards
from rmjax.core.option_names import Option, argument, rename_options
from rmjax.core.processes import all_equal
from rmjax.data.records.formats import Item
from rmjax.data.records.options import ReadOptions
from rmjax.data.schema import Comparison, Tree
from rmjax.data.tokens.rendering import Overlong, make_trees
from rmjax.data.tokens.templates import TemplateReport
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.evaluation.rewards import std_of
from rmjax.evaluation.scoring import Scorer
from rmjax.models.correction import Correction
from rmjax.models.loading import load_model
from rmjax.models.members import with_combination

CHUNK_SIZE = 256  # records that are tokenized, scored and written together
_ACCELERATOR_ROWS = 8  # default rows per device of a batch; on CPU one row keeps all cores busy


@dataclasses.dataclass(frozen=True)
class RewardPipeline:
    """A reward model with everything that scoring text needs.

    Attributes:
      max_length: of a conversation, in tokens; longer ones are not scored.
      options: data options, by default those of training.
      metadata: contents of rmjax.json, for a workdir `Workdir.metadata`, for another model its `reward_head`.
      option_names: of configuration keys, in errors of records: {"data.columns": "--columns"}.
    """

    scorer: Scorer
    tokenizer: Tokenizer
    max_length: int
    options: ReadOptions
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    option_names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the A rewards of a response."""
        return self.scorer.model.head.attributes

    @property
    def scorers(self) -> tuple[Scorer, ...]:
        """The scorers that compute a reward."""
        return (self.scorer,)

    @property
    def uncertain(self) -> bool:
        """Whether rewards have a standard deviation."""
        return self.scorer.model.head.uncertain

    def score_trees(self, trees: Sequence[Tree]) -> list[np.ndarray]:
        """Returns the rewards float32 [R, A] of trees of the tokenizer, as `Scorer.score`, which documents errors."""
        return self.scorer.score(trees)

    def with_data_options(
        self, format: str, columns: Sequence[str], strings: str | None, label_field: str | None = None
    ) -> "RewardPipeline":
        """Returns the pipeline with other data options; `strings` and `label_field` None keep those of training."""
        options = dataclasses.replace(
            self.options,
            format=format,
            columns=tuple(columns),
            strings=strings or self.options.strings,
            label_field=label_field or self.options.label_field,
        )
        return dataclasses.replace(self, options=options)

    def merge(self, rewards: np.ndarray) -> np.ndarray:
        """Returns the one reward [R] that ranks responses, the weighted sum of the attributes of `rewards` [R, A]."""
        weights = self.scorer.model.head.merge or [1 / len(self.attributes)] * len(self.attributes)
        return rewards @ np.asarray(weights, np.float32)

    def rewards(
        self,
        items: Sequence[Item],
        report: TemplateReport | None = None,
        lengths: list[np.ndarray | None] | None = None,
    ) -> list[np.ndarray | str]:
        """Returns the rewards float32 [R, A] of each item, or an error message if it cannot be scored.

        `report` counts what the chat template leaves out; to `lengths`, the numbers of tokens of each item's
        conversations are appended, int64 [K], None for an item without tokens.
        """
        comparisons = [item for item in items if isinstance(item, Comparison)]
        made = iter(make_trees(comparisons, self.tokenizer, report=report, max_length=self.max_length))
        trees = [next(made) if isinstance(item, Comparison) else item.reason for item in items]
        if lengths is not None:
            tokens = lambda tree: len(tree.prefix) + np.array([*map(len, tree.branches)])
            lengths += [tokens(tree) if isinstance(tree, Tree) else None for tree in trees]
        usable = [tree for tree in trees if isinstance(tree, Tree) and tree.longest <= self.max_length]
        _check_same_input(self.scorer, usable)
        scored = iter(self.scorer.score(usable))

        def result(tree: Tree | Overlong | str) -> np.ndarray | str:
            if isinstance(tree, str):
                return rename_options(tree, self.option_names)
            fix = "raise --max_length or shorten it"
            if isinstance(tree, Overlong):
                return f"{tree.characters:,} characters exceed max_length = {self.max_length} tokens; {fix}"
            if tree.longest > self.max_length:
                return f"{tree.longest} tokens exceed max_length = {self.max_length}; {fix}"
            rewards = next(scored)
            return non_finite_error("rewards", rewards, "check the model's weights, or score in float32") or rewards

        return [result(tree) for tree in trees]


def _check_same_input(scorer: Scorer, trees: Sequence[Tree]) -> None:
    """Raises InputError if the processes of a multi-process run would score different trees, or with another model."""
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(repr((scorer.model, scorer.row_length, scorer.rows)).encode())
    for tree in trees:
        for part in (tree.prefix, *tree.branches):
            digest.update(part.tobytes() + b"|")
        digest.update(repr((tree.readouts, tree.spans)).encode())
    if not all_equal(digest.digest()):
        raise InputError(
            "the processes score different records or use different models or flags; give each process the same "
            "--input, --model and flags"
        )


def load_pipeline(
    path: str,
    *,
    max_length: int = 0,
    rows_per_device: int = 0,
    dtype: str = "float32",
    int8: bool = False,
    template_date: str = "",
    mesh: str = "",
    deterministic: bool = False,
    combination: str = "",
    beta: float | None = None,
    progress: bool = False,
    option: Option | None = argument,
) -> RewardPipeline:
    """Returns the pipeline of a model.

    Args:
      path: artifact, Hugging Face directory with a reward head, or workdir.
      max_length: in tokens; 0: the model's.
      rows_per_device: rows of a batch; 0: chosen by platform.
      int8: store the layers' matrices as int8 (`rmjax.models.int8`).
      template_date: date that the chat template writes; empty: that of training, or `templates.DEFAULT_DATE`.
      mesh: sizes of the device mesh's axes, as `core.mesh.parse_sizes` reads them, over which parameters and rows are
        sharded; empty: all devices have all parameters, and share the rows.
      deterministic: see `Scorer`.
      combination, beta: of the rewards of a head's members (`models.members`); empty and None: the model's.
      progress: show a progress bar while the parameters are loaded.
      option: formats these options in errors; None: the caller has no such options.

    Raises:
      InputError: there is no usable model, or max_length exceeds its positions.
    """
    if template_date:
        check_date(template_date)  # before the weights are read
    name = option("mesh") if option else "mesh"
    device_mesh = make_mesh(parse_sizes(mesh, name), name=name)
    with jax.set_mesh(device_mesh):
        loaded = load_model(
            path,
            mesh=device_mesh,
            dtype=dtype,
            param_dtype=dtype,
            quantized=int8,
            max_length=max_length,
            progress=progress,
            option=option,
        )
    positions = loaded.model.decoder.max_positions
    if not 0 <= max_length <= positions:
        raise InputError(f"max_length is {max_length}; the model {path} supports 1 to {positions} positions")
    date = template_date or loaded.metadata.get("template_date") or ""
    tokenizer = Tokenizer.load(str(loaded.directory), date, loaded.metadata["pooling"])
    tokenizer.check_vocabulary(loaded.model.decoder.vocab_size)
    rows = rows_per_device or (1 if device_mesh.devices.flat[0].platform == "cpu" else _ACCELERATOR_ROWS)
    max_length = max_length or loaded.max_length
    rows *= row_shards(device_mesh)
    model = with_combination(loaded.model, combination, beta)
    correction = Correction.from_metadata(loaded.metadata)
    scorer = Scorer(
        model, loaded.params, device_mesh, max_length, rows, deterministic=deterministic, correction=correction
    )
    options = ReadOptions(**loaded.metadata.get("data_options", {}))
    return RewardPipeline(scorer, tokenizer, max_length, options, loaded.metadata)


def describe_model(path: str, pipeline: RewardPipeline) -> str:
    """Returns a line about the model that was loaded from a path: artifact or workdir, the checkpoint's step, …"""
    metadata, scaling = pipeline.metadata, pipeline.scorer.model.decoder.describe_scaling()
    if (ensemble := metadata.get("ensemble")) is not None:
        return f"model: an ensemble, by its {ensemble['combination']}, of {', '.join(ensemble['models'])}"
    step = metadata.get("source_step")
    if "format_version" in metadata:
        line = f"model: {path}, an artifact" + (f" of the checkpoint at step {step}" if step is not None else "")
    elif step is not None:
        line = f"model: {path}, its best checkpoint (step {step})"
    else:
        line = f"model: {path}, a Hugging Face model; reward head: {metadata.get('reward_head')}"
    return f"{line}; {scaling}" if scaling else line


def score_chunks(
    pipeline: RewardPipeline,
    items: Iterable[Item],
    progress: Any,
    report: TemplateReport | None = None,
    lengths: list[np.ndarray | None] | None = None,
) -> Iterator[list[tuple[Item, np.ndarray | str]]]:
    """Yields chunks of (item, its rewards or error message), in order.

    `progress` is from `progress_bar`; `report` and `lengths` are as for `RewardPipeline.rewards`.
    """
    items = iter(items)
    while chunk := list(itertools.islice(items, CHUNK_SIZE)):
        yield list(zip(chunk, pipeline.rewards(chunk, report, lengths), strict=True))
        progress.update(len(chunk))


def template_lines(pipeline: RewardPipeline, report: TemplateReport) -> list[str]:
    """Returns lines about what the chat template added of its own, and what it left out; none if it was not used."""
    if not report.rendered:
        return []
    left_out = report.describe_left_out()
    return [pipeline.tokenizer.describe_template()[-1], *([f"warning: {left_out}"] if left_out else [])]


def prediction_line(item: Item, rewards: np.ndarray | str, attributes: Sequence[str]) -> dict[str, Any]:
    """Returns the record's own fields and `rewards` or `error`: a line of predictions.jsonl or of a score file.

    `rewards` holds a number per response, or an object {attribute: value} if the head has several attributes; so does
    `reward_std`, their standard deviations, if the model has an uncertain head.
    """
    record = json_record(item.record)
    if isinstance(rewards, str):
        return record | {"error": f"{item.where}: {rewards}"}
    found, std = {"rewards": rewards}, std_of(rewards)
    if std is not None:
        found["reward_std"] = std
    if len(attributes) == 1:
        return record | {name: values[:, 0].tolist() for name, values in found.items()}
    rows = lambda values: [dict(zip(attributes, row, strict=True)) for row in values.tolist()]
    return record | {name: rows(values) for name, values in found.items()}


def json_record(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record after a round trip through JSON; types that JSON lacks (Parquet's dates) become strings."""
    return json.loads(json.dumps(record, default=str))
