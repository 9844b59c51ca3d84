"""Evaluation on a suite: its records read, scored and judged by its rule, and the report with a reproduction note."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from rmjax.core.errors import InputError
from rmjax.core.progress import progress_bar
from rmjax.core.sections import Section, Table, interval_cells, metric_table
from rmjax.core.text import count_of
from rmjax.data.records.fields import BadField
from rmjax.data.records.formats import FORMATS
from rmjax.data.records.options import ReadOptions
from rmjax.data.records.report import ReadReport
from rmjax.data.records.sources import BadRecord, Source, find_sources
from rmjax.data.schema import Comparison, Record
from rmjax.data.tokens.templates import TemplateReport
from rmjax.evaluation.comparison import ModelComparison, compare_suites
from rmjax.evaluation.evaluate import Evaluation
from rmjax.evaluation.pipeline import RewardPipeline, prediction_line, score_chunks, template_lines
from rmjax.evaluation.scores import Scores, prompt_ids, prompt_text
from rmjax.evaluation.suites.suite import Suite, Task
from rmjax.metrics.bootstrap import Bootstrap, Samples, intervals
from rmjax.models import card


@dataclasses.dataclass(frozen=True, repr=False)
class SuiteEvaluation(Evaluation):
    """The result of `evaluate_suite`, saved and shown as `Evaluation` is.

    Attributes:
      main: names of the metrics of the headline.
      samples: the metrics over the resampled tasks.
      records: of the tasks.
    """

    main: tuple[str, ...] = ()
    samples: Samples = dataclasses.field(default_factory=dict)
    records: Sequence[Record] = ()

    @property
    def headline(self) -> list[tuple[str, str]]:
        """The score and the sections as (name, text) rows, after the counts."""
        counts = [(name.replace("_", " "), f"{self.metrics[name]:,}") for name in ("comparisons", "not_scored")]
        return counts + [(name, self._text(name)) for name in self.main if name in self.metrics]

    def compare(self, other: Evaluation) -> ModelComparison:
        """Returns the comparison with another model's evaluation on the same tasks.

        Raises:
          InputError: it is of other tasks.
        """
        if not isinstance(other, SuiteEvaluation) or (other.main, other.records) != (self.main, self.records):
            raise InputError(f"{other.title} has other tasks than {self.title}; expected the same suite and data")
        names = {name: name for name in self.samples}
        return compare_suites(self.main[0].partition("/")[0], self.samples, other.samples, names, self.main)


@dataclasses.dataclass(frozen=True)
class SuiteData:
    """The records of a suite as comparisons, [n] each, and the number of records that were skipped."""

    comparisons: list[Comparison]
    parts: list[str]
    skipped: int


def suite_pipeline(pipeline: RewardPipeline, strings: str | None) -> RewardPipeline:
    """Returns the pipeline with the prompt format of a suite: `strings` if given, else that of the model's training.

    A Hugging Face model, whose training options are not known, gets chat messages if its tokenizer has a template.
    """
    if strings is None:
        trained = "data_options" in pipeline.metadata
        chat = not trained and bool(pipeline.tokenizer.base.chat_template)
        strings = "chat" if chat else pipeline.options.strings
    options = dataclasses.replace(pipeline.options, strings=strings, labeled=False, format="auto")
    return dataclasses.replace(pipeline, options=options)


def read_suite(
    suite: Suite, sources: Sequence[str | Source], options: ReadOptions, *, limit: int = 0, on_bad_record: str = "error"
) -> SuiteData:
    """Returns the records of sources as comparisons without labels: those stay in the records, for the rule.

    Args:
      sources: files, hub names, name=path, or Sources; none: the published sets.
      limit: maximum number of comparisons; 0: no limit.
      on_bad_record: `error`, or `skip` records that are not of this suite.

    Raises:
      InputError: a source cannot be read, a record is not of the suite, or there is none.
    """
    found = SuiteData([], [], 0)
    skipped = 0
    for source in find_sources([*sources] or [each.source for each in suite.published]):
        place = f"{source.name} {source.location}".strip()
        for where, record in source.records(ReadReport(), options.columns):
            if limit and len(found.comparisons) >= limit:
                break
            try:
                if isinstance(record, BadRecord):
                    raise BadField(record.reason)
                for each in suite.expand(record):
                    part = suite.part(each, place)
                    found.comparisons.append(FORMATS[suite.format(each)].parse(where, each, options))
                    found.parts.append(part)
            except BadField as error:
                if on_bad_record == "error":
                    raise InputError(
                        f"{where}: not a record of {suite.name}: {error} (on_bad_record = skip leaves it out)"
                    ) from error
                skipped += 1
    if not found.comparisons:
        raise InputError(f"{suite.name}: the data has no record of this suite")
    return dataclasses.replace(found, skipped=skipped)


def evaluate_suite(
    suite: Suite,
    pipeline: RewardPipeline,
    data: SuiteData,
    *,
    threshold: float | None = None,
    title: str = "",
    progress: bool = True,
) -> SuiteEvaluation:
    """Scores the comparisons, a prompt's responses together, and computes the metrics `SUITE/NAME` with intervals.

    An interval is the 95 % bootstrap interval over prompts, with the whole rule computed again for each resample. If
    responses of a comparison are too long, the others are scored without them.

    Args:
      pipeline: of `suite_pipeline`.
      threshold: reward above which a step is right; None: chosen by the suite's rule.

    Raises:
      InputError: nothing could be scored, the model has no rewards of steps, or the rule needs other data.
    """
    if threshold is not None and not suite.steps:
        raise InputError(f"threshold is given, but {suite.name} judges responses, not steps; leave it out")
    report = TemplateReport()
    predictions, scores, tasks = _score(suite, pipeline, data, report, progress)
    if all(np.isnan(task.rewards).all() for task in tasks):
        raise InputError(f"{suite.name}: no record could be scored; the first error: {predictions[0]['error']}")
    keys = [suite.cluster(comparison.record) for comparison in data.comparisons]
    texts = [key or prompt_text(comparison) for key, comparison in zip(keys, data.comparisons, strict=True)]
    judged = judge(suite, tasks, prompt_ids(texts), threshold)
    samples = {f"{suite.name}/{name}": pair for name, pair in judged.items()}
    not_scored = sum(bool(np.isnan(task.rewards).any()) for task in tasks)
    counts = {"comparisons": len(tasks), "not_scored": not_scored, "prompts": len(np.unique(prompt_ids(texts)))}
    metrics = counts | intervals(samples)
    main = tuple(f"{suite.name}/{name}" for name in suite.sections)
    sections = (_results(suite, metrics), *_details(suite, metrics), _reproduction(suite, pipeline, data, tasks))
    notes = tuple(template_lines(pipeline, report))
    facts = tuple(card.facts(pipeline.metadata))
    records = [task.record for task in tasks]
    shown = (title, metrics, predictions, sections)
    return SuiteEvaluation(*shown, [], scores, notes, facts, main, samples, records)


def judge(suite: Suite, tasks: Sequence[Task], clusters: np.ndarray, threshold: float | None = None) -> Samples:
    """Returns the metrics of a suite's rule over resampled tasks; without those that are not defined.

    Args:
      tasks: [n].
      clusters: [n], equal for the tasks that are resampled together.
    """
    rule = suite.rule(tasks, threshold)
    points = rule(np.ones((1, len(tasks))))
    names = [name for name, value in points.items() if np.isfinite(value[0])]

    def compute(weights: np.ndarray) -> np.ndarray:
        found = rule(weights)
        return np.stack([found[name] for name in names], 1)

    samples = Bootstrap(clusters).samples(compute)
    return {name: (float(points[name][0]), column) for name, column in zip(names, samples.T, strict=True)}


def _score(
    suite: Suite, pipeline: RewardPipeline, data: SuiteData, report: TemplateReport, progress: bool
) -> tuple[list[dict[str, Any]], Scores, list[Task]]:
    predictions: list[dict[str, Any]] = []
    scored: list[tuple[Comparison, np.ndarray, np.ndarray]] = []
    tasks: list[Task] = []
    lengths: list[np.ndarray | None] = []
    with progress_bar(len(data.comparisons), "scoring", "record", disable=not progress) as bar:
        for chunk in score_chunks(pipeline, data.comparisons, bar, report, lengths):
            for comparison, rewards in chunk:
                assert isinstance(comparison, Comparison)
                part, tokens = data.parts[len(tasks)], lengths[len(tasks)]
                predictions.append(prediction_line(comparison, rewards, pipeline.attributes))
                if isinstance(rewards, str):
                    values = _one_by_one(suite, pipeline, comparison)
                    if not np.isnan(values).all():
                        predictions[-1]["rewards"] = [None if np.isnan(value) else float(value) for value in values]
                else:
                    values = np.array(rewards[:, 0] if suite.steps else pipeline.merge(rewards), np.float64)
                    if tokens is not None:
                        scored.append((comparison, rewards, tokens))
                if suite.steps and len(values) != len(comparison.steps):
                    raise InputError(
                        f"{suite.name} judges steps, but the model has {count_of(len(values), 'reward')} for "
                        f"{count_of(len(comparison.steps), 'step')}; give a process reward model"
                    )
                tasks.append(Task(comparison.record, part, values))
    comparisons = [comparison for comparison, _, _ in scored]
    merged = [pipeline.merge(rewards) for _, rewards, _ in scored]
    prompts = prompt_ids([prompt_text(comparison) for comparison in comparisons])
    scores = Scores(
        comparisons, [r for _, r, _ in scored], merged, [t for _, _, t in scored], prompts, pipeline.attributes
    )
    return predictions, scores, tasks


def _one_by_one(suite: Suite, pipeline: RewardPipeline, comparison: Comparison) -> np.ndarray:
    """Returns the rewards [R] of a comparison that could not be scored as a whole, NaN where one cannot be scored."""
    if suite.steps:
        return np.full(len(comparison.steps), np.nan)
    single = [dataclasses.replace(comparison, conversations=(each,)) for each in comparison.conversations]
    return np.array(
        [np.nan if isinstance(each, str) else pipeline.merge(each)[0] for each in pipeline.rewards(single)], np.float64
    )


def _results(suite: Suite, metrics: dict[str, float]) -> Section:
    names = {f"{suite.name}/{name}": text for name, text in suite.sections.items()}
    return Section(
        suite.title, suite.description, (metric_table("Scores, with 95 % intervals over prompts", metrics, names),)
    )


def _details(suite: Suite, metrics: dict[str, float]) -> tuple[Section, ...]:
    """Returns the section of the metrics beyond the main ones; nothing if there are none."""
    shown = {f"{suite.name}/{name}" for name in suite.sections}
    ends = ("_low", "_high")
    names = [
        name for name in metrics if name.startswith(f"{suite.name}/") and name not in shown and not name.endswith(ends)
    ]
    rows = tuple((name.removeprefix(f"{suite.name}/"), *interval_cells(metrics, name)) for name in names)
    return (Section("Parts", "", (Table("Parts", ("part", "value", "low", "high"), rows),)),) if rows else ()


def _reproduction(suite: Suite, pipeline: RewardPipeline, data: SuiteData, tasks: Sequence[Task]) -> Section:
    """Returns the section that says how these numbers came about, and what differs from the published way."""
    missing = [bool(np.isnan(task.rewards).any()) for task in tasks]
    rows, partial = [], []
    sets = [suite.published_set(part) for part in data.parts]
    for each in suite.published:
        mine = [i for i, name in enumerate(sets) if name == each.name]
        rows.append((each.name, each.source, len(mine), each.records, sum(missing[i] for i in mine)))
        if len(mine) != each.records:
            partial.append(f"{each.name}: {len(mine):,} of {each.records:,}")
    if partial:
        complete = "NOT the published set, so the scores are not comparable: " + "; ".join(partial) + "."
    else:
        complete = "All published records are there."
    if data.skipped:
        complete += f" {count_of(data.skipped, 'record')} could not be read and were left out."
    if any(missing):
        complete += f" {count_of(sum(missing), 'record')} could not be scored whole; see the rule for what they count."
    model = pipeline.scorer.model
    chat = pipeline.options.strings == "chat"
    template = pipeline.tokenizer.describe_template()[0] if chat else "prompt and response joined as text"
    setup = (
        f"Activations in {model.dtype}, parameters in {model.frozen_dtype or model.param_dtype}, conversations up to "
        f"{pipeline.max_length:,} tokens; {template}."
    )
    columns = ("set", "published as", "records here", "records published", "not scored")
    differences = Table(
        "What the official code does differently", ("difference",), tuple((x,) for x in suite.differences)
    )
    text = f"{complete}\n\n{setup}\n\nThe official code prints no intervals."
    return Section("Reproduction", text, (Table("Records", columns, tuple(rows)), differences))


def suite_title(model: str, suite: Suite, sources: Sequence[Any]) -> str:
    """Returns the title of the report: the model, the suite, and the data if it is not the published one."""
    names = ", ".join(pathlib.PurePath(str(getattr(source, "location", source))).name for source in sources)
    return f"{model} on {suite.title}" + (f" ({names})" if names else "")
