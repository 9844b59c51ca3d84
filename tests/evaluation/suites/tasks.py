"""Tasks of the suites with given rewards, and their metrics."""

import numpy as np

from rmjax.evaluation.suites import SUITES
from rmjax.evaluation.suites.suite import Task

NAN = float("nan")


def task(suite, rewards, place="", /, **record):
    return Task(record, SUITES[suite].part(record, place), np.asarray(rewards, np.float64))


def values(suite, tasks, threshold=None):
    """Returns the metrics without intervals."""
    found = SUITES[suite].rule(tasks, threshold)(np.ones((1, len(tasks))))
    return {name: float(value[0]) for name, value in found.items()}
