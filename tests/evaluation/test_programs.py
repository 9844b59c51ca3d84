"""The programs rmjax.evaluate and rmjax.score: what they print, and the names of their flags in errors."""

import importlib
import json
import os
import subprocess
import sys

import jax
import pytest

from rmjax.core.errors import InputError
from rmjax.evaluation.evaluate import Evaluation
from rmjax.models.workdir import Workdir
from rmjax.training.experiment import train
from rmjax.training.export import export
from tests.conftest import ROOT
from tests.training.conftest import tiny as tiny_config
from tests.training.test_tasks import write


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory with a trained workdir `run`, its artifact, and files of records."""
    path = tmp_path_factory.mktemp("programs")
    config = tiny_config.__wrapped__()
    train(config, path / "run", progress=False)
    export(path / "run", path / "artifact")
    write(path / "pairs.jsonl", "pairs", 3)
    singles = [{"prompt": "Count up:", "response": f" 12{i}"} for i in range(3)]
    (path / "singles.jsonl").write_text("".join(json.dumps(record) + "\n" for record in singles))
    (path / "renamed.jsonl").write_text('{"question": "q", "response": "r"}\n')
    return path


def run(made, program, *flags):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    command = [sys.executable, "-m", f"rmjax.{program}", *flags]
    return subprocess.run(command, cwd=made, env=environment, capture_output=True, text=True, timeout=120)


def test_evaluate_names_the_checkpoint_and_the_artifact(made, tmp_path):
    step = Workdir(made / "run").best_step()
    result = run(made, "evaluate", "--model=run", "--data=pairs.jsonl", f"--output={tmp_path}")
    assert result.stdout.splitlines()[0] == f"model: run, its best checkpoint (step {step})", result.stderr
    result = run(made, "evaluate", "--model=artifact", "--data=pairs.jsonl", f"--output={tmp_path}")
    assert result.stdout.splitlines()[0] == f"model: artifact, an artifact of the checkpoint at step {step}"
    assert "\r" not in result.stdout + result.stderr
    bars = [line.partition(" [")[0] for line in result.stderr.splitlines()]
    assert bars == ["loading artifact: 100% 20/20", "scoring: 100% 3/3"]


@pytest.mark.parametrize(
    ("program", "flags", "message"),
    [
        (
            "evaluate",
            ["--data=pairs.jsonl", "--output=out", "--max_length=4"],
            "error: none of 3 records could be scored; ",
        ),
        ("evaluate", ["--data=renamed.jsonl", "--output=out"], "rename it (--columns='question=prompt')"),
        ("evaluate", ["--data=renamed.jsonl", "--output=out"], "(or set --on_bad_record to skip)"),
        ("evaluate", ["--data=pairs.jsonl", "--output=pairs.jsonl"], "--output=pairs.jsonl: pairs.jsonl is a file"),
        (
            "evaluate",
            ["--data=pairs.jsonl", "--output=out", "--format=csv"],
            "error: --format is 'csv'; choose one of auto, ",
        ),
        ("score", ["--input=pairs.jsonl", "--output=out.jsonl", "--columns=x"], "error: --columns holds 'x'; expected"),
        ("score", ["--input=pairs.jsonl", "--output=out.jsonl", "--max_length=-1"], "--max_length"),
        ("score", ["--input=pairs.jsonl", "--output=out.jsonl", "--shard=8/8"], "--shard is '8/8'; expected I/N"),
    ],
)
def test_errors_name_the_flags_of_the_program(made, program, flags, message):
    result = run(made, program, "--model=run", *flags)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_results_are_written_once_and_what_cannot_be_compared_is_refused_before_scoring(
    made, run_main, tmp_path, monkeypatch
):
    saved, scored = [], []
    program = importlib.import_module("rmjax.evaluate")
    save, evaluate = Evaluation.save, program.evaluate
    monkeypatch.setattr(Evaluation, "save", lambda self, path: saved.append(path) or save(self, path))
    monkeypatch.setattr(program, "evaluate", lambda *args, **options: scored.append(1) or evaluate(*args, **options))
    flags = [f"--model={made / 'run'}", f"--compare={made / 'artifact'}", f"--output={tmp_path / 'out'}"]
    run_main("evaluate", *flags, f"--data={made / 'pairs.jsonl'}")
    assert (len(saved), len(scored)) == (1, 2)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["compare/accuracy_difference"] == 0
    (made / "rated.jsonl").write_text('{"prompt": "q", "response": "r", "labels": {"tone": 2}}\n')
    with pytest.raises(InputError, match="it has labels of tone; expected preferences"):
        run_main("evaluate", *flags, f"--data={made / 'rated.jsonl'}")
    assert (len(saved), len(scored)) == (1, 2)


def test_score_reads_a_format_of_the_users_own(made, tmp_path):
    (made / "mine.py").write_text(
        'def parse(record):\n    return {"prompt": record["question"], "response": record["response"]}\n'
    )
    flags = ["--model=run", "--input=renamed.jsonl", f"--output={tmp_path}/a.jsonl", "--format=mine.py"]
    result = run(made, "score", *flags)
    assert result.returncode == 0, result.stderr
    line = json.loads((tmp_path / "a.jsonl").read_text())
    assert {key: line[key] for key in line if key != "rewards"} == {"question": "q", "response": "r"}
    assert len(line["rewards"]) == 1
    (made / "mine.py").write_text("x = 1\n")
    result = run(made, "score", *flags)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: --format=mine.py: defines no function parse(record)")


def test_score_names_the_first_error_and_a_best_of_without_effect(made, tmp_path):
    result = run(made, "score", "--model=run", "--input=singles.jsonl", f"--output={tmp_path}/a.jsonl", "--best_of")
    assert result.returncode == 0, result.stderr
    assert "warning: --best_of has no effect: no scored record has several responses" in result.stdout.splitlines()
    assert result.stdout.splitlines()[-1] == f"{tmp_path}/a.jsonl: 3 of 3 records scored"
    result = run(made, "score", "--model=run", "--input=pairs.jsonl", f"--output={tmp_path}/b.jsonl", "--best_of")
    assert "warning" not in result.stdout
    result = run(made, "score", "--model=run", "--input=renamed.jsonl", f"--output={tmp_path}/c.jsonl")
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("first error: ")]
    assert line.startswith("first error: renamed.jsonl:1: there is no prompt, but 'question'")
    assert "--columns='question=prompt'" in line
    assert "--columns='question=prompt'" in json.loads((tmp_path / "c.jsonl").read_text())["error"]
    assert result.stderr.splitlines()[-1] == "error: 1 record could not be scored; see `error` in the output"
