"""experiments/score_ray.py with two workers on this machine, one of which is killed."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmjax.core.mesh import make_mesh
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import artifact
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.decoder import RewardModel
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra [ray]")

SECONDS = 240  # for one run, on a busy machine
RECORDS = 600


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ray") / "model"
    directory.mkdir()
    tokenizer = Tokenizer.load("")
    decoder = DecoderConfig(len(tokenizer), 64, 128, 2, 4, 2, 16, 1e-5, 1e4, None, False, False, 512, 0.2)
    reward_model = RewardModel(decoder, HeadConfig(("helpful", "brief"), init=1.0))
    with jax.set_mesh(make_mesh()):
        params = reward_model.init(jax.random.key(0))
    tokenizer.save(directory)
    artifact.write(directory, reward_model, params, 0, {"max_length": 256})
    return directory


@pytest.fixture(scope="module")
def records():
    random = np.random.default_rng(0)
    text = lambda: " " + "".join(random.choice(list("abcdef "), random.integers(20, 120)))
    found = [{"id": i, "prompt": text(), "chosen": text(), "rejected": text()} for i in range(RECORDS)]
    found[37]["chosen"] = "x" * 5000  # too long: cannot be scored
    return found


def start(log, model, source, output):
    command = [sys.executable, ROOT / "experiments" / "score_ray.py", "--workers=2", "--block=40"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "PYTHONPATH": str(ROOT),
        "RAY_DEDUP_LOGS": "0",
    }
    return subprocess.Popen(
        [*command, f"--model={model}", f"--input={source}", f"--output={output}"],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
    )


def loaded(log):
    """Returns the process numbers of the workers that have loaded the model."""
    return [int(number) for number in re.findall(r"worker (\d+) has loaded", log.read_text())]


def check(lines, records):
    """Checks that `lines` are the scored records, each once and in order."""
    fields = lambda line: {key: value for key, value in line.items() if key not in ("rewards", "error")}
    assert [fields(line) for line in lines] == records


def expected(run_main, model, source, output):
    """Returns the lines of rmjax.score."""
    with pytest.raises(SystemExit):  # a record cannot be scored
        run_main("score", f"--model={model}", f"--input={source}", f"--output={output}")
    return [json.loads(line) for line in output.read_text().splitlines()]


def compare(lines, reference):
    values = lambda line: [[scores["helpful"], scores["brief"]] for scores in line["rewards"]]
    assert [bool(line.get("error")) for line in lines] == ["error" in line for line in reference]
    for line, wanted in zip(lines, reference, strict=True):
        if "error" in wanted:
            assert "256" in line["error"]
        else:
            np.testing.assert_allclose(values(line), values(wanted), atol=1e-5)


def test_every_record_is_scored_once_although_a_worker_is_killed(model, records, tmp_path, run_main):
    source, output, log = tmp_path / "in.parquet", tmp_path / "out", tmp_path / "log"
    pq.write_table(pa.Table.from_pylist(records), source)
    with open(log, "w") as file:
        process = start(file, model, source, output)
    try:
        deadline = time.monotonic() + SECONDS
        while not list(output.glob("*.parquet")) or not loaded(log):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.01)
        os.kill(loaded(log)[0], signal.SIGKILL)
        status = process.wait(SECONDS)
    finally:
        process.kill()
    assert status == 1, log.read_text()[-3000:]
    assert f"{RECORDS - 1} of {RECORDS} records scored" in log.read_text()
    assert "killed while executing a task" in log.read_text()  # Ray's words
    assert json.loads((output / "_SUCCESS").read_text())["errors"] == 1
    lines = [row for path in sorted(output.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    check(lines, records)
    compare(lines, expected(run_main, model, source, tmp_path / "reference.jsonl"))

    with open(log, "w") as file:
        again = start(file, model, source, output)
    assert again.wait(SECONDS) == 1
    assert "finished run; choose another directory" in log.read_text()


def test_json_lines(model, records, tmp_path, run_main):
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    source.write_text("".join(json.dumps(record) + "\n" for record in records[:50]) + "no JSON\n")
    with open(tmp_path / "log", "w") as log:
        process = start(log, model, source, output)
    try:
        assert process.wait(SECONDS) == 1, (tmp_path / "log").read_text()[-3000:]
    finally:
        process.kill()
    lines = [json.loads(line) for path in sorted(output.glob("*.jsonl")) for line in path.read_text().splitlines()]
    assert "not valid JSON" in lines.pop()["error"]
    check(lines, records[:50])
    reference = expected(run_main, model, source, tmp_path / "reference.jsonl")
    compare(lines, reference[:50])
