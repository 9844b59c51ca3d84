"""The interface of a suite: published sets, how their records become comparisons, and the rule of the scores.

Axis letters: n tasks, S resamples, R rewards of a task (one per response, or one per step).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rmjax.data.records.fields import BadField, text
from rmjax.data.schema import Record

Statistic = Callable[[np.ndarray], dict[str, np.ndarray]]  # from weights of the tasks [S, n] to {metric: [S]}


@dataclasses.dataclass(frozen=True)
class Published:
    """A published set: its name in the report, its source (a hub name with split), and its number of records."""

    name: str
    source: str
    records: int


@dataclasses.dataclass(frozen=True)
class Task:
    """A record of a suite with its rewards.

    Attributes:
      record: as published.
      part: what `Suite.part` returned for it.
      rewards: float64 [R]; NaN where a response, or all steps, could not be scored.
    """

    record: Record
    part: str
    rewards: np.ndarray


@dataclasses.dataclass(frozen=True)
class Suite:
    """A published benchmark.

    Attributes:
      name: value of --suite, first part of the metrics' names.
      title: of the report.
      published: the sets that are read if no data is given.
      format: of a record, a name of `formats.FORMATS`; raises BadField if the record is not of this suite.
      part: of a record and the name of its source, the section or subset that it belongs to; raises BadField.
      published_set: of a record's part, the name of the published set that it is counted with; "" for none.
      rule: of all tasks and a threshold (None: chosen by the rule), the function from weights to the metrics, NaN where
        a metric is not defined. A metric's value is that of weights 1, its interval that of resampled prompts.
      sections: {metric: text}, the main metrics in the order of the report; the first is the score.
      description: what the score is.
      differences: what the official code does differently.
      expand: the records that a published record becomes.
      cluster: what the tasks that are resampled together have in common, of their record; "": the prompt.
      steps: whether the rewards are those of steps.
    """

    name: str
    title: str
    published: tuple[Published, ...]
    format: Callable[[Record], str]
    part: Callable[[Record, str], str]
    published_set: Callable[[str], str]
    rule: Callable[[Sequence[Task], float | None], Statistic]
    sections: Mapping[str, str]
    description: str
    differences: tuple[str, ...]
    expand: Callable[[Record], list[Record]] = lambda record: [record]
    cluster: Callable[[Record], str] = lambda record: ""
    steps: bool = False


def field(record: Record, name: str) -> str:
    """Returns a field's text; raises BadField, which names it, if there is none."""
    return text(record.get(name), name)


def metric_name(text: str) -> str:
    """Returns a section's name as part of a metric's name.

    >>> metric_name("Precise IF")
    'precise_if'
    """
    return text.lower().replace(" ", "_")


def choose(value: str, known: Mapping[str, str], name: str) -> str:
    """Returns `known[value]`; raises BadField, which names the field, if it is not known."""
    if value not in known:
        raise BadField(f"{name} is {value!r:.60}; expected {', '.join(known)}", f"{name} is not known")
    return known[value]


def members(tasks: Sequence[Task], part: str) -> np.ndarray:
    """Returns the indices of the tasks of a part, int64."""
    return np.array([i for i, task in enumerate(tasks) if task.part == part], np.int64)


def mean_of(weights: np.ndarray, values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Returns the weighted means [S] of values [m] of the tasks with these indices [m]; NaN without weight.

    >>> mean_of(np.array([[1.0, 1.0, 2.0]]), np.array([1.0, 0.0]), np.array([0, 2])).tolist()
    [0.3333333333333333]
    """
    return ratio_of(weights, values, np.ones(len(index)), index)


def ratio_of(weights: np.ndarray, top: np.ndarray, bottom: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Returns the weighted sum of top over that of bottom, both [m] of the tasks `index` [m]: [S]; NaN for 0 / 0."""
    chosen = weights[:, index]
    return divide(chosen @ np.asarray(top, np.float64), chosen @ np.asarray(bottom, np.float64))


def divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Returns top / bottom, NaN where bottom is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(bottom), math.nan), where=bottom != 0)


def average(values: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """Returns the mean [S] over those of several values [S] that are not NaN, with a weight for each; NaN for none.

    >>> average([np.array([1.0]), np.array([np.nan]), np.array([0.0])], [3, 1, 1]).tolist()
    [0.75]
    """
    stacked = np.stack(list(values))
    factors = np.ones(len(stacked)) if weights is None else np.asarray(weights, np.float64)
    known = ~np.isnan(stacked)
    return divide((np.where(known, stacked, 0) * factors[:, None]).sum(0), (known * factors[:, None]).sum(0))
