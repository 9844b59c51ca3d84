"""The Python API: the same results as the programs, in threads, in event loops, without output."""

import asyncio
import json
import os
import re
import subprocess
import sys
import threading

import datasets
import jax
import numpy as np
import pytest

import rmjax
from rmjax.core.errors import InputError
from rmjax.data.records import synthetic
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.evaluation.score_file import score_file
from tests.conftest import ROOT
from tests.training.conftest import tiny as tiny_config

PROMPT, RESPONSES = "Count up:", [" 123456", " 654321", " 1"]
CHAT = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes."}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tiny_config.__wrapped__()
    config.train.steps, config.optimizer.learning_rate = 30, 3e-3
    return rmjax.train(config, workdir=tmp_path_factory.mktemp("api") / "run")


@pytest.fixture(scope="module")
def model(run):
    return rmjax.load(run)


def records(split="train", size=24):
    return [item.record for item in synthetic.comparisons(split, size)]


def test_the_package_imports_lazily_and_programs_do_not_hide_its_functions():
    code = (
        "import sys, rmjax; from rmjax.serving import Client; assert 'jax' not in sys.modules, 'jax'\n"
        "import importlib; importlib.import_module('rmjax.train'); importlib.import_module('rmjax.evaluate')\n"
        "assert rmjax.train.__module__.startswith('rmjax.api'), rmjax.train\n"
        "assert rmjax.configs.small().name == 'run'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_has_metrics_history_and_a_figure(run):
    assert run.step == 30
    assert 0 < run.metrics["accuracy"] <= 1
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    assert run.history == lines
    assert "<svg" in run.plot()._repr_html_()
    assert str(run.workdir) in repr(run)


def test_training_prints_nothing_unless_asked(tmp_path, capfd):
    config = tiny_config.__wrapped__()
    config.train.steps = 2
    rmjax.train(config, workdir=tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")
    rmjax.train(config, workdir=tmp_path / "verbose", verbose=True)
    captured = capfd.readouterr()
    assert "plan: 2 steps" in captured.out
    assert "training" in captured.err


@pytest.mark.parametrize("kind", ["list", "dataset", "path"])
def test_data_in_memory_trains_as_a_file_does(tmp_path, kind):
    config = tiny_config.__wrapped__()
    config.train.steps = 3
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records()))
    data = {"list": records(), "dataset": datasets.Dataset.from_list(records()), "path": path}[kind]
    expected = rmjax.train(config, train=str(path), validation=str(path), workdir=tmp_path / "file")
    found = rmjax.train(config, train=data, validation=[str(path)], workdir=tmp_path / "memory")
    assert found.metrics == expected.metrics
    again = rmjax.train(config, train=data, validation=[str(path)], workdir=tmp_path / "memory")
    assert again.metrics == expected.metrics
    with pytest.raises(InputError, match=r"training data|another configuration"):
        rmjax.train(config, train=records()[:-1], validation=[str(path)], workdir=tmp_path / "memory")


def test_hand_made_records_score_as_in_a_file(model, run, tmp_path):
    found = records("validation", 6)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in found))
    score_file(load_pipeline(str(run.workdir)), str(tmp_path / "in.jsonl"), tmp_path / "out.jsonl")
    expected = [json.loads(line)["rewards"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(model.score_batch(found), np.array(expected, np.float32))
    for record, rewards in zip(found, expected, strict=True):
        scored = model.score(record["prompt"], [record["chosen"], record["rejected"]])
        assert scored.dtype == np.float32
        np.testing.assert_allclose(scored, rewards, atol=1e-6)


def test_a_format_of_the_users_own_is_the_same_data(model, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def parse(record):\n"
        '    prompt, *answers = record["turns"]\n'
        '    return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}\n'
    )
    given = [{"turns": [record["prompt"], record["chosen"], record["rejected"]]} for record in records()]
    config = tiny_config.__wrapped__()
    config.train.steps = 3
    expected = rmjax.train(config, train=records(), validation=records(), workdir=tmp_path / "pairs")
    config.data.format = str(path)
    found = rmjax.train(config, train=given, validation=given, workdir=tmp_path / "mine")
    assert found.metrics == expected.metrics
    np.testing.assert_array_equal(model.score_batch(given, format=str(path)), model.score_batch(records()))
    assert model.evaluate(given, format=str(path)).metrics == model.evaluate(records()).metrics
    with pytest.raises(InputError, match=r"record 0: parse\(\) of .*mine\.py, line 2: KeyError: turns"):
        model.score_batch(records(), format=str(path))


def test_what_score_takes(model):
    assert model.score(PROMPT, RESPONSES).shape == (3,)
    assert model.score(PROMPT, RESPONSES[0]) == pytest.approx(model.score(PROMPT, RESPONSES)[0], abs=1e-6)
    assert model.score(CHAT).shape == ()
    assert model.score("a whole text").shape == ()
    chat = model.score(CHAT[:1], ["Yes.", "No."])
    assert chat[0] == pytest.approx(model.score(CHAT), abs=1e-6)
    assert model.score(CHAT[:1], [CHAT[1:], CHAT[1:]])[1] == pytest.approx(chat[0], abs=1e-6)
    assert model.score_batch([]) == []


def test_errors_are_exceptions_or_values(model):
    long = "9" * 2000
    with pytest.raises(InputError, match="exceed max_length = 1024"):
        model.score(PROMPT, [long])
    mixed = [{"text": "fine"}, {"text": long}, {"text": ""}]
    with pytest.raises(InputError, match=r"record 1: .*errors='return'"):
        model.score_batch(mixed)
    fine, overlong, empty = model.score_batch(mixed, errors="return")
    assert np.isfinite(fine).all()
    assert "exceed max_length" in str(overlong)
    assert isinstance(empty, InputError)
    with pytest.raises(InputError, match="errors is 'ignore'"):
        model.score_batch(mixed, errors="ignore")


def test_explanations_show_tokens_and_readouts(model):
    explanation = model.explain(PROMPT, RESPONSES)
    np.testing.assert_allclose(explanation.rewards[:, 0], model.score(PROMPT, RESPONSES), atol=1e-6)
    assert "".join(text for text, branch, _ in explanation.tokens if branch == 0).startswith(PROMPT)
    assert sum(readout for *_, readout in explanation.tokens) == len(RESPONSES)
    assert "⟦<eos>⟧" in str(explanation)
    assert str(explanation).endswith("rewards: " + ", ".join(f"{value:.4f}" for value in explanation.rewards[:, 0]))
    assert explanation.reward_std is None
    assert "response 2" in explanation._repr_html_()


def test_a_packed_row_is_drawn(model):
    svg = model.plot_packing([{"prompt": PROMPT, "responses": RESPONSES}, {"prompt": "x", "responses": ["y"]}]).svg
    assert svg.startswith("<?xml")
    assert "token-0" in svg


def test_evaluation_is_that_of_the_program(model, run, tmp_path):
    report = model.evaluate("synthetic", limit=50)
    assert report.metrics["comparisons"] == 50
    assert "accuracy" in str(report)
    assert "<table>" in report._repr_html_()
    report.save(tmp_path)
    command = ["-m", "rmjax.evaluate", f"--model={run.workdir}", "--data=synthetic", "--limit=50"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(jax.device_count())}
    output = f"--output={tmp_path / 'program'}"
    subprocess.run([sys.executable, *command, output], check=True, capture_output=True, env=environment)
    for name in ("metrics.json", "predictions.jsonl"):
        assert (tmp_path / name).read_text() == (tmp_path / "program" / name).read_text()
    report = rmjax.evaluate(run, records("validation", 8), limit=4, int8=True, mesh="tensor=2")
    assert report.metrics["comparisons"] == 4
    with pytest.raises(InputError, match=r"is loaded already; give dtype to rmjax\.load"):
        rmjax.evaluate(model, "synthetic", dtype="bfloat16")


def test_export_and_serve(model, tmp_path):
    artifact = model.export(tmp_path / "artifact")
    np.testing.assert_allclose(rmjax.load(artifact).score(PROMPT, RESPONSES), model.score(PROMPT, RESPONSES), atol=1e-5)
    again = rmjax.load(artifact).export(tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (artifact / "model.safetensors").read_bytes()
    with rmjax.serve(model) as server, server.client() as client:
        served = client.rewards(RESPONSES, prompts=[PROMPT] * 3)
        np.testing.assert_allclose(served, model.score(PROMPT, RESPONSES), atol=1e-5)
        assert server.url in repr(server)
        with pytest.raises(InputError, match="cannot listen"):
            rmjax.serve(model, http_port=server.http_port)
    server.stop()  # a second time does nothing


def test_everything_works_in_threads_and_running_event_loops(model, tmp_path):
    config = tiny_config.__wrapped__()
    config.train.steps = 2
    results = []

    def work(name):
        run = rmjax.train(config, workdir=tmp_path / name)
        results.append(rmjax.load(run).score(PROMPT, RESPONSES))

    thread = threading.Thread(target=work, args=("thread",))
    thread.start()
    thread.join()

    async def in_a_loop():
        work("loop")
        with rmjax.serve(model) as server, server.client() as client:
            return client.rewards(["a", "b"])

    assert asyncio.run(in_a_loop()).shape == (2,)
    np.testing.assert_array_equal(*results)


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    config = tiny_config.__wrapped__()
    config.train.steps = 2
    monkeypatch.setattr("rmjax.core.config.small", lambda: config)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "runs" / "python" / "artifact" / "rmjax.json").exists()


def test_names_of_the_package_are_listed():
    assert {"train", "load", "evaluate", "serve", "find_duplicates", "configs", "InputError"} <= set(dir(rmjax))


def test_data_is_described():
    text = repr(rmjax.describe(records(size=5)))
    assert "5 comparisons of 5 records (pairs); nothing dropped" in text
    assert "shared (12): C¦o¦u¦n¦t" in text


def test_a_plan_of_simulated_devices_can_be_made_while_jax_is_in_use():
    config = tiny_config.__wrapped__()
    config.mesh.update(data=1, fsdp=4)
    plan = rmjax.plan(config, "cpu:4", tokens_per_comparison=20, comparisons=64, vocab_size=300)
    assert (plan.devices, plan.fits) == (4, None)
    assert plan.collectives["all-gather"] > 0
    count = len(jax.devices())
    with pytest.raises(InputError, match=f"has {count} CPU devices already; expected {count + 1} or more"):
        rmjax.plan(config, f"cpu:{count + 1}", tokens_per_comparison=20, comparisons=64)
    with pytest.raises(InputError, match="expected CHIP:SHAPE"):
        rmjax.plan(config, "h200", tokens_per_comparison=20)


def test_a_configuration_file_can_be_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match="unknown argument 'pretraind'"):
        rmjax.train("configs/kwise.py:pretraind", workdir=tmp_path / "run")
