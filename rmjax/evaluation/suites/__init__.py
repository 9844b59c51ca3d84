"""Published benchmarks of reward models by their own rules: a module per suite, their table, and the evaluation."""

from rmjax.core.errors import InputError
from rmjax.evaluation.suites.judgebench import JUDGEBENCH
from rmjax.evaluation.suites.ppe import PPE
from rmjax.evaluation.suites.prmbench import PRMBENCH
from rmjax.evaluation.suites.processbench import PROCESSBENCH
from rmjax.evaluation.suites.rewardbench import REWARDBENCH
from rmjax.evaluation.suites.rewardbench2 import REWARDBENCH2
from rmjax.evaluation.suites.rm_bench import RM_BENCH
from rmjax.evaluation.suites.suite import Suite

SUITES = {suite.name: suite for suite in (REWARDBENCH, REWARDBENCH2, RM_BENCH, JUDGEBENCH, PPE, PROCESSBENCH, PRMBENCH)}


def find_suite(name: str) -> Suite:
    """Returns the suite of a name.

    Raises:
      InputError: there is none.

    >>> find_suite("rm_bench").title
    'RM-Bench'
    """
    if name not in SUITES:
        raise InputError(f"suite is {name!r}; expected {', '.join(SUITES)}")
    return SUITES[name]
