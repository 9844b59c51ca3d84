"""Where a step's reward is read: at the step's end, or at the end of the separator after it."""

import numpy as np
import pytest

from rmjax.data.records.formats.process import parse_process
from rmjax.data.records.options import ReadOptions

RECORD = {"prompt": "p", "completions": ["s1", "step 2"], "labels": [True, False]}


@pytest.mark.parametrize(
    ("readout", "separator", "text", "ends"),
    [
        ("step", "\n", "p\ns1\nstep 2", (4, 11)),
        ("separator", "\n", "ps1\nstep 2\n", (4, 11)),
        ("separator", " ки\n", "ps1 ки\nstep 2 ки\n", (7, 17)),
        ("separator", "", "ps1step 2", (3, 9)),
    ],
)
def test_strings(readout, separator, text, ends):
    comparison = parse_process("a:1", RECORD, ReadOptions(step_readout=readout, step_separator=separator))
    assert (comparison.conversations, comparison.steps) == ((text,), ends)
    np.testing.assert_array_equal(comparison.labels, [[1.0], [0.0]])


def test_messages():
    """Positions are within the response."""
    record = RECORD | {"prompt": [{"role": "user", "content": "p"}]}
    comparison = parse_process("a:1", record, ReadOptions(step_readout="separator"))
    assert comparison.conversations[0][-1]["content"] == "s1\nstep 2\n"
    assert comparison.steps == (3, 10)
