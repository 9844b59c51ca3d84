"""Progress bars in terminals and plain lines in log files."""

import io
import sys

import pytest

from rmjax.core import progress
from rmjax.core.progress import progress_bar, write_line


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress.time, "perf_counter", clock)
    return clock


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


def test_a_log_file_gets_plain_lines_every_30_seconds_and_at_the_end(clock, capsys):
    with progress_bar(100, "training", "step", initial=10) as bar:
        for _ in range(90):
            clock.now += 1
            bar.set_postfix_str("loss 0.5", refresh=False)
            bar.update()
    text = capsys.readouterr().err
    assert text.endswith("\n")
    assert not {"\r", "\x1b"} & set(text)
    assert text.splitlines() == [
        "training:  40% 40/100 [00:30<01:00,  1.00step/s, loss 0.5]",
        "training:  70% 70/100 [01:00<00:30,  1.00step/s, loss 0.5]",
        "training: 100% 100/100 [01:30<00:00,  1.00step/s, loss 0.5]",
    ]


def test_a_log_file_gets_one_last_line_for_a_short_task(clock, capsys):
    with progress_bar(None, "scoring", "record") as bar:
        bar.update(3)
    with progress_bar(None, "scoring", "record"):
        pass
    assert capsys.readouterr().err == "scoring: 3record [00:00, ?record/s]\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_time_left_ignores_the_first_update(clock, monkeypatch, terminal):
    """The first step takes 300 seconds of compilation, and each of the others 2."""
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    bar = progress_bar(101, "training", "step")
    for seconds in (300, 2, 2, 40):
        clock.now += seconds
        bar.update(1 if seconds < 40 else 20)
    if terminal:
        bar.refresh()
    assert "<01:58," in stream.getvalue().replace("\r", "\n").splitlines()[-1]  # 59 steps of 2 seconds
    bar.close()


def test_a_disabled_bar_shows_nothing(capsys):
    with progress_bar(3, "training", "step", disable=True) as bar:
        bar.update()
        bar.set_postfix_str("loss 0.5", refresh=False)
    assert capsys.readouterr().err == ""


def test_lines_are_written_by_the_given_function():
    lines = []
    with progress_bar(3, "training", "step") as bar:
        bar.update()
        write_line(lines.append, "step 1")
    assert lines == ["step 1"]
