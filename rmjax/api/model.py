"""A loaded reward model: score, explain, evaluate, export."""

import dataclasses
import inspect
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.api.data import Data, to_sources
from rmjax.api.explanation import Explanation
from rmjax.api.runs import Run
from rmjax.core.errors import InputError
from rmjax.core.progress import progress_bar
from rmjax.data.description import render
from rmjax.data.records.formats import Item, parse_sources
from rmjax.data.records.sources import memory_source
from rmjax.data.schema import Comparison, Record, Tree
from rmjax.data.tokens.rendering import make_trees
from rmjax.data.tokens.templates import TemplateReport
from rmjax.evaluation.ensemble import load_models
from rmjax.evaluation.evaluate import Evaluation, read_evaluation_data
from rmjax.evaluation.evaluate import evaluate as evaluate_items
from rmjax.evaluation.figures import Figure, draw_row
from rmjax.evaluation.pipeline import RewardPipeline, score_chunks
from rmjax.evaluation.rewards import std_of
from rmjax.evaluation.suites import find_suite
from rmjax.evaluation.suites.run import evaluate_suite, read_suite, suite_pipeline, suite_title
from rmjax.training.export import export


class Model:
    """A loaded reward model; made by `rmjax.load`.

    Attributes:
      path: where it was loaded from.
      pipeline: the model with its tokenizer and data options.
    """

    def __init__(self, path: str, pipeline: RewardPipeline):
        self.path, self.pipeline = path, pipeline
        self._warned: set[str] = set()  # kinds of content that the chat template leaves out

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the A rewards of a response."""
        return self.pipeline.attributes

    @property
    def metadata(self) -> dict[str, Any]:
        """The model card: rmjax.json of an artifact, or the same of a workdir's best checkpoint."""
        return self.pipeline.metadata

    def score(self, prompt: Any, responses: Any = None) -> np.ndarray:
        """Returns the rewards of responses to one prompt, rendered and tokenized exactly as in training.

        Content that the chat template leaves out is named in a warning, once for each kind.

        Args:
          prompt: a string, or chat messages; without `responses`, one whole conversation: chat messages, or a text that
            is tokenized as it is.
          responses: a list of K strings or of K lists of messages; or one of them.

        Returns:
          float32 [K] for several responses (the prompt is computed once), else a scalar; with one more axis A at the
          end if the model has several attributes.

        Raises:
          InputError: a response cannot be scored, for example because it is too long.
        """
        rewards, single = self._score(prompt, responses)
        return self._shape(rewards, single)

    def uncertainty(self, prompt: Any, responses: Any = None) -> np.ndarray:
        """Returns the standard deviations of the rewards that `score` returns, of the same shape; see there.

        Raises:
          InputError: a response cannot be scored, or the model has one head without a Laplace approximation.
        """
        rewards, single = self._score(prompt, responses)
        if (std := std_of(rewards)) is None:
            raise InputError(
                f"{self.path}: its rewards have no standard deviation; train with config.model.head_members above 1, "
                "load an ensemble, or run rmjax.calibrate --laplace"
            )
        return self._shape(std, single)

    def _score(self, prompt: Any, responses: Any) -> tuple[np.ndarray, bool]:
        """Returns the rewards [K, A] of responses, and whether it is a single one."""
        record, single = _record(prompt, responses)
        (rewards,) = self._rewards([record], _format(record))
        if isinstance(rewards, str):
            raise InputError(rewards)
        return rewards, single

    def _shape(self, values: np.ndarray, single: bool) -> np.ndarray:
        values = np.asarray(values)[:, 0] if len(self.attributes) == 1 else np.asarray(values)
        return values[0] if single else values

    def score_batch(
        self, records: Iterable[Record], *, format: str = "auto", errors: str = "raise", progress: bool = False
    ) -> list[Any]:
        """Returns the rewards of each record, float32 [K] or [K, A]; labels are ignored.

        Args:
          records: as in a data file, for example {"prompt", "responses"}, {"messages"}, {"text"} or pairs.
          format: of the records; see the data formats.
          errors: `raise` an InputError for a record that cannot be scored, or `return` its InputError in the list.
          progress: show a progress bar.
        """
        if errors not in ("raise", "return"):
            raise InputError(f"errors is {errors!r}; expected 'raise' or 'return'")
        found: list[Any] = []
        for rewards in self._rewards(list(records), format, progress):
            if isinstance(rewards, str):
                if errors == "raise":
                    raise InputError(f"record {len(found)}: {rewards}; errors='return' returns errors in the list")
                found.append(InputError(rewards))
            else:
                found.append(self._shape(rewards, False))
        return found

    def _rewards(self, records: list[Record], format: str, progress: bool = False) -> list[np.ndarray | str]:
        if not records:
            return []
        items, report = self._items(records, format), TemplateReport()
        with progress_bar(len(items), "scoring", "record", disable=not progress) as bar:
            rewards = [rewards for chunk in score_chunks(self.pipeline, items, bar, report) for _, rewards in chunk]
        if not self._warned.issuperset(report.left_out):
            self._warned |= report.left_out.keys()
            warnings.warn(report.describe_left_out(), stacklevel=3)
        return rewards

    def _items(self, records: list[Record], format: str) -> list[Item]:
        options = dataclasses.replace(self.pipeline.options, format=format, labeled=False)
        return list(parse_sources(memory_source(records), options))

    def _trees(self, records: list[Record], format: str) -> list[Tree]:
        items = self._items(records, format)
        trees = iter(make_trees([item for item in items if isinstance(item, Comparison)], self.pipeline.tokenizer))
        found = [next(trees) if isinstance(item, Comparison) else item.reason for item in items]
        if errors := [tree for tree in found if isinstance(tree, str)]:
            raise InputError(errors[0])
        return [tree for tree in found if isinstance(tree, Tree)]

    def explain(self, prompt: Any, responses: Any = None) -> Explanation:
        """Returns the tokens and readouts of what `score` scores, with the rewards; arguments as for `score`."""
        record, _ = _record(prompt, responses)
        (tree,), (rewards,) = self._trees([record], _format(record)), self._rewards([record], _format(record))
        if isinstance(rewards, str):
            raise InputError(rewards)
        tokens = []
        for branch, (part, read) in enumerate(zip((tree.prefix, *tree.branches), tree.read(), strict=True)):
            texts = self.pipeline.tokenizer.token_strings(part)
            tokens += [(text, branch, marked) for text, marked in zip(texts, read.tolist(), strict=True)]
        text = "\n".join(render(tree, self.pipeline.tokenizer))
        return Explanation(tokens, np.asarray(rewards), text, std_of(rewards))

    def plot_packing(self, records: Iterable[Record], *, format: str = "auto") -> Figure:
        """Returns the figure of a packed row that holds these records as prefix trees, with its attention mask."""
        trees = self._trees(list(records), format)
        texts = [
            [text for part in (tree.prefix, *tree.branches) for text in self.pipeline.tokenizer.token_strings(part)]
            for tree in trees
        ]
        return draw_row(trees, sum(tree.length for tree in trees), texts)

    def evaluate(
        self,
        data: Data = (),
        *,
        suite: str = "",
        threshold: float | None = None,
        format: str = "auto",
        columns: Sequence[str] = (),
        label_field: str = "",
        limit: int = 0,
        on_bad_record: str = "error",
        robustness: Sequence[str] = (),
        progress: bool = False,
    ) -> Evaluation:
        """Returns the metrics and predictions on labeled data; `report.save(DIR)` writes what `rmjax.evaluate` writes.

        Args:
          data: optional with `suite`: the published sets.
          suite: a published benchmark (`rewardbench2`, …), evaluated by its own rule; empty: none. `format` and
            `robustness` do not apply to it.
          threshold: reward above which a step is right, for suites of steps; None: chosen by the rule.
          format, columns: of the records; columns are renamed, `old=new` each.
          label_field: the label of PKU-SafeRLHF, which has two; empty: that of training.
          limit: maximum number of comparisons; 0: no limit.
          on_bad_record: `error`, or `skip` records that cannot be read.
          robustness: changes of the responses with which they are scored again: `whitespace`, `markdown`, `order`,
            `filler`.

        Raises:
          InputError: a record cannot be used, or nothing could be scored.
        """
        pipeline = self.pipeline.with_data_options(format, columns, None, label_field)
        if suite:
            found, pipeline = find_suite(suite), suite_pipeline(pipeline, None)
            given = to_sources(data) if len(data) else []
            records = read_suite(found, given, pipeline.options, limit=limit, on_bad_record=on_bad_record)
            title = suite_title(self.path, found, given)
            return evaluate_suite(found, pipeline, records, threshold=threshold, title=title, progress=progress)
        sources = to_sources(data)
        notes: list[str] = []
        items = read_evaluation_data(
            sources, pipeline.options, limit=limit, on_bad_record=on_bad_record, log=notes.append
        )
        names = ", ".join(str(getattr(source, "location", source)) for source in sources)
        title = f"{self.path} on {names}"
        return evaluate_items(pipeline, items, title=title, notes=notes, robustness=robustness, progress=progress)

    def export(
        self,
        output: str | pathlib.Path,
        *,
        merge: Mapping[str, float] | None = None,
        standardize: bool = False,
        peft: bool = False,
        combination: str = "",
        beta: float | None = None,
    ) -> pathlib.Path:
        """Writes the serving artifact and returns its directory, which must be empty or missing.

        Args:
          merge: {attribute: weight}, to reduce the attributes to one reward.
          standardize: rewards of mean 0 and standard deviation 1 over the validation data.
          peft: write the adapters and the head alone, for the PEFT library.
          combination, beta: of the rewards of a head's members, as the default of the artifact; see `load`.
        """
        weights = [f"{name}={weight}" for name, weight in (merge or {}).items()]
        options: dict[str, Any] = {"merge": weights, "standardize": standardize, "peft": peft}
        options |= {"combination": combination, "beta": beta}
        export(self.path, pathlib.Path(output), **options)
        return pathlib.Path(output)

    def __repr__(self) -> str:
        return f"<rmjax model {self.path}: {', '.join(self.attributes)}, up to {self.pipeline.max_length} tokens>"


def _record(prompt: Any, responses: Any) -> tuple[Record, bool]:
    """Returns the record that `Model.score` scores, and whether it is a single conversation."""
    if responses is None:
        return ({"text": prompt} if isinstance(prompt, str) else {"messages": list(prompt)}), True
    is_message = lambda value: isinstance(value, Mapping)
    single = isinstance(responses, str) or (len(responses) > 0 and all(map(is_message, responses)))
    found = [responses] if single else list(responses)
    if not isinstance(prompt, str | None):
        found = [[{"role": "assistant", "content": r}] if isinstance(r, str) else list(r) for r in found]
        prompt = list(prompt)
    return {"prompt": prompt, "responses": found}, single


def _format(record: Record) -> str:
    return next(
        name for key, name in (("text", "text"), ("messages", "messages"), ("responses", "kwise")) if key in record
    )


def load(
    path: str | pathlib.Path | Run,
    *,
    max_length: int = 0,
    rows_per_device: int = 0,
    dtype: str = "float32",
    int8: bool = False,
    template_date: str = "",
    mesh: str = "",
    combination: str = "",
    beta: float | None = None,
) -> Model:
    """Returns a reward model.

    Args:
      path: a workdir (its best checkpoint), an artifact, a Hugging Face directory with a reward head, a hub name, or a
        `Run`; of an ensemble "A,B,C", or a JSON file {"models": [A, B, C]}.
      max_length: longest conversation in tokens; 0: the model's.
      rows_per_device: rows of a batch; 0: chosen by platform.
      dtype: of activations, `float32` or `bfloat16`.
      int8: store the layers' matrices as int8, with a scale for each column.
      template_date: date (YYYY-MM-DD) that a chat template writes; empty: that of training, or 2024-07-26.
      mesh: sizes of the device mesh's axes data, fsdp, tensor and sequence, such as `tensor=4,fsdp=2`, over which
        parameters and rows are sharded; empty: each device has all parameters.
      combination, beta: of the rewards of a head's members or an ensemble: mean, minimum, mean_std (mean - beta · std)
        or quantile (of level beta); empty and None: the model's.

    Raises:
      InputError: there is no usable model.
    """
    path = str(path.workdir if isinstance(path, Run) else path)
    pipeline = load_models(
        path,
        max_length=max_length,
        rows_per_device=rows_per_device,
        dtype=dtype,
        int8=int8,
        template_date=template_date,
        mesh=mesh,
        combination=combination,
        beta=beta,
    )
    return Model(path, pipeline)


def evaluate(model: "Model | Run | str | pathlib.Path", data: Data = (), **options: Any) -> Evaluation:
    """Returns `rmjax.load(model).evaluate(data, **options)`; those of `rmjax.load` (`mesh`, `dtype`, …) go there."""
    names = [name for name in inspect.signature(load).parameters if name in options]
    return open_model(model, {name: options.pop(name) for name in names}).evaluate(data, **options)


def open_model(model: "Model | Run | str | pathlib.Path", options: Mapping[str, Any]) -> Model:
    """Returns a model as it is, or loaded with options of `load`; InputError if they are given for a loaded one."""
    if options and isinstance(model, Model):
        raise InputError(f"{model.path} is loaded already; give {', '.join(options)} to rmjax.load")
    return model if isinstance(model, Model) else load(model, **options)
