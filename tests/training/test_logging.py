"""Writers of training metrics: their state after resuming, and a user-defined one."""

import json
import os
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from rmjax.models.workdir import Workdir
from rmjax.training.experiment import train
from rmjax.training.logging import WRITERS, CompositeWriter, MetricsWriter
from tests.training.test_experiment import lines


class MemoryWriter(MetricsWriter):
    def __init__(self, workdir, step):
        self.calls = [("open", step)]

    def write(self, step, split, metrics):
        self.calls.append((step, split, metrics))

    def flush(self):
        self.calls.append("flush")

    def close(self):
        self.calls.append("close")


def events(directory):
    """Yields the events of TensorBoard's files, in order: length (8 bytes), checksum (4), event, checksum (4)."""
    for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_a_users_writer_receives_what_metrics_jsonl_does(tiny, tmp_path):
    made = []

    def open_writer(workdir, step):
        made.append(MemoryWriter(workdir, step))
        return made[-1]

    train(tiny, tmp_path / "run", writers=[open_writer])
    (writer,) = made
    assert writer.calls[0] == ("open", 0)
    written = [call for call in writer.calls[1:] if isinstance(call, tuple)]
    file = (tmp_path / "run" / "metrics.jsonl").read_text()
    expected = [json.dumps({"step": step, "split": split, **metrics}) + "\n" for step, split, metrics in written]
    assert "".join(expected) == file
    assert writer.calls[-2:] == ["flush", "close"]
    assert writer.calls.count("close") == 1
    # Flushed after the validations at steps 3 and 6, before their checkpoints, and at the end.
    assert [writer.calls[i - 1][:2] for i, call in enumerate(writer.calls) if call == "flush"][:2] == [
        (3, "validation"),
        (6, "validation"),
    ]


@pytest.mark.parametrize("incomplete", ["", '{"step": 2, "sp'])
def test_stale_metrics_are_removed_after_resuming(tmp_path, incomplete):
    workdir = Workdir(tmp_path)
    first = CompositeWriter(workdir, 0)
    for step in (1, 2, 3):
        first.write(step, "train", {"loss": 1.0 / step})
    first.close()
    for path in workdir.tensorboard_directory.iterdir():
        path.rename(path.with_name(f"{path.name}.first"))  # names change once a second only
    with open(workdir.metrics_file, "a") as file:
        file.write(incomplete)
    second = CompositeWriter(workdir, 1)
    assert lines(tmp_path) == [{"step": 1, "split": "train", "loss": 1.0}]
    second.write(2, "train", {"loss": 0.25})
    second.close()
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 0.25]
    found = [
        (event.step, value.tag) for event in events(workdir.tensorboard_directory) for value in event.summary.value
    ]
    assert found == [(1, "train/loss"), (2, "train/loss"), (3, "train/loss"), (2, "train/loss")]
    starts = [e.step for e in events(workdir.tensorboard_directory) if e.session_log.status == SessionLog.START]
    assert starts == [0, 2]  # TensorBoard drops what came before it at steps from there on


def test_a_run_without_metrics_is_closed(tmp_path):
    CompositeWriter(Workdir(tmp_path), 0).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_metrics_are_on_disk_before_the_curve_is_drawn(tmp_path, monkeypatch):
    order, workdir = [], Workdir(tmp_path)

    def fsync(number):
        if workdir.metrics_file.exists() and os.path.sameopenfile(number, metrics.fileno()):
            order.append("fsync")

    monkeypatch.setattr("rmjax.training.logging.os.fsync", fsync)
    monkeypatch.setattr("rmjax.training.figures.draw", lambda series: order.append("draw") or "<svg/>")
    writer = CompositeWriter(workdir, 0, WRITERS)
    with open(workdir.metrics_file) as metrics:
        writer.write(1, "train", {"loss": 1.0})
        writer.flush()
        assert order == ["fsync", "draw"]
        assert json.loads(metrics.read())["loss"] == 1.0
        writer.flush()  # nothing new to draw
        assert order == ["fsync", "draw", "fsync"]
        writer.close()
