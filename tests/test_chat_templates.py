"""Chat templates end to end: the date, content that is left out, and roles, in training and wherever a model scores."""

import datetime
import importlib
import json
import shutil
import types
import warnings

import chex
import httpx2
import numpy as np
import pytest
import tritonclient.grpc as triton
from absl import logging

import rmjax
from rmjax.core.errors import InputError
from rmjax.data.tokens import templates
from rmjax.data.tokens.byte_level import byte_level
from rmjax.data.tokens.templates import DEFAULT_DATE
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.evaluation.score_file import score_file
from rmjax.models import paths
from rmjax.training.experiment import train
from rmjax.training.export import export
from tests.training.conftest import tiny as tiny_config
from tests.training.test_experiment import final_params, lines

describe_program = importlib.import_module("rmjax.describe")  # `rmjax.describe` is the function of that name

# Writes the date; leaves out system messages, and thoughts in answers.
TEMPLATE = (
    "{{ '<|im_start|>system\\nToday is ' + strftime_now('%d %b %Y') + '.<|im_end|>\\n' }}"
    "{% for m in messages if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{{ m.content.split('</think>')[-1].strip() if m.role == 'assistant' else m.content }}{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
)
START, MORNING_AFTER = datetime.date(2026, 11, 26), datetime.date(2026, 11, 27)
ADDED = "the chat template adds of its own: 'Today is 26 Nov 2026.' (system message), the date 2026-11-26"
THOUGHT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>Hm.</think>4"}]
PLAIN = [THOUGHT[0], {"role": "assistant", "content": "4"}]


def set_today(monkeypatch, date):
    monkeypatch.setattr(templates, "today", lambda: date)


def pair(i, **more):
    turn = lambda text: [{"role": "assistant", "content": text}]
    return {
        "prompt": [{"role": "user", "content": f"{i}+1?"}],
        "chosen": turn(f"{i + 1}"),
        "rejected": turn("0"),
        **more,
    }


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tokenizer directory, data of which the template leaves out content, a workdir trained on it, its artifact."""
    path = tmp_path_factory.mktemp("templates")
    base = byte_level()
    base.chat_template = TEMPLATE
    base.save_pretrained(path / "tokenizer")
    records = [pair(i) for i in range(1, 25)]
    records[2]["prompt"].insert(0, {"role": "System", "content": "Be brief."})
    records[4]["chosen"][0]["content"] = "<think>4 and 1</think>5"
    data = write(path / "train.jsonl", records)
    config = tiny_config.__wrapped__()
    config.data.update(train=(data,), validation=(data,), tokenizer=str(path / "tokenizer"))
    log = []
    with pytest.MonkeyPatch.context() as patch:
        set_today(patch, START)
        patch.setenv("RMJAX_CACHE", str(path / "cache"))
        train(config, path / "run", log=log.append, progress=False)
    export(path / "run", path / "artifact")
    return types.SimpleNamespace(path=path, config=config, data=data, log=log)


@pytest.fixture(autouse=True)
def _own_token_cache(made, monkeypatch):
    monkeypatch.setenv("RMJAX_CACHE", str(made.path / "cache"))


@pytest.fixture
def foreign(made, tmp_path):
    """The artifact without rmjax.json: a Hugging Face model."""
    for file in (made.path / "artifact").iterdir():
        if file.name != "rmjax.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    return str(tmp_path)


def test_training_names_what_the_template_adds_and_leaves_out(made):
    (line,) = (line for line in made.log if line.startswith("train: "))
    assert (
        "the chat template leaves out content of 2 of 24 comparisons: "
        f"system: the whole message (1; first: {made.data}:3), assistant: text up to </think> (1; first: {made.data}:5)"
    ) in line
    assert made.log.count(ADDED) == 1


def test_date_of_training_is_kept_in_workdir_and_artifact(made):
    assert made.config.data.template_date == ""
    assert json.loads((made.path / "run" / "config.json").read_text())["data"]["template_date"] == "2026-11-26"
    assert json.loads((made.path / "artifact" / "rmjax.json").read_text())["template_date"] == "2026-11-26"
    assert {paths.template_date(str(made.path / name)) for name in ("run", "artifact")} == {"2026-11-26"}


@pytest.mark.parametrize("cached", [True, False])
def test_resume_after_midnight_continues_bit_for_bit(made, tmp_path, monkeypatch, cached):
    shutil.copytree(made.path / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    set_today(monkeypatch, MORNING_AFTER)
    if not cached:
        monkeypatch.setenv("RMJAX_CACHE", str(tmp_path / "cache"))
    log = []
    assert train(made.config, tmp_path / "run", log=log.append, progress=False).step == 6
    assert any(line.startswith("resuming") and "at step 3" in line for line in log)
    (line,) = (line for line in log if line.startswith("train: "))
    assert ("tokens from cache" in line) == cached
    assert "leaves out content of 2 of 24 comparisons" in line
    assert ADDED in log
    assert lines(tmp_path / "run") == lines(made.path / "run")
    chex.assert_trees_all_equal(final_params(tmp_path / "run"), final_params(made.path / "run"))


def test_another_date_is_another_run(made, tmp_path):
    config = made.config.copy_and_resolve_references()
    config.data.template_date = "2026-11-27"
    with pytest.raises(InputError, match=r"data.template_date: '2026-11-26' there, '2026-11-27' here"):
        train(config, made.path / "run", progress=False)
    config.data.template_date = "tomorrow"
    with pytest.raises(InputError, match=r"config.data.template_date is 'tomorrow'; expected a date as YYYY-MM-DD"):
        train(config, tmp_path / "run", progress=False)


@pytest.mark.parametrize("name", ["run", "artifact"])
def test_rewards_are_the_same_on_every_day(made, monkeypatch, name):
    set_today(monkeypatch, MORNING_AFTER)
    pipeline = load_pipeline(str(made.path / name))
    text = pipeline.tokenizer.render(THOUGHT)
    assert "Today is 26 Nov 2026." in text
    other = load_pipeline(str(made.path / name), template_date="2026-12-01")
    assert "Today is 01 Dec 2026." in other.tokenizer.render(THOUGHT)


def test_a_model_without_a_date_gets_the_default_one(made, foreign):
    assert DEFAULT_DATE == "2024-07-26"
    assert "Today is 26 Jul 2024." in load_pipeline(foreign).tokenizer.render(THOUGHT)
    assert "Today is 27 Jul 2024." in rmjax.load(foreign, template_date="2024-07-27").pipeline.tokenizer.render(THOUGHT)


@pytest.mark.parametrize("name", ["run/config.json", "artifact/rmjax.json"])
def test_models_of_earlier_versions_are_loaded(made, tmp_path, name):
    directory, file = name.split("/")
    shutil.copytree(made.path / directory, tmp_path / directory)
    metadata = json.loads((tmp_path / name).read_text())
    del metadata.get("data", metadata)["template_date"]
    metadata.pop("file_checksum", None)
    (tmp_path / directory / "sums.json").unlink(missing_ok=True)
    (tmp_path / directory / file).write_text(json.dumps(metadata))
    assert paths.template_date(str(tmp_path / directory)) == ""
    assert "Today is 26 Jul 2024." in load_pipeline(str(tmp_path / directory)).tokenizer.render(THOUGHT)


def test_score_and_evaluate_name_what_the_template_leaves_out(made, tmp_path):
    pipeline, log = load_pipeline(str(made.path / "artifact")), []
    source = write(tmp_path / "in.jsonl", [{"messages": THOUGHT}, {"messages": PLAIN}])
    score_file(pipeline, source, tmp_path / "out.jsonl", log=log.append)
    kind = "assistant: text up to </think>"
    assert log[-2:] == [
        ADDED,
        f"warning: the chat template leaves out content of 1 of 2 comparisons: {kind} (1; first: {source}:1)",
    ]
    evaluation = rmjax.load(made.path / "artifact").evaluate(made.data)
    assert evaluation.notes[-2] == ADDED
    assert evaluation.notes[-1].startswith("warning: the chat template leaves out content of 2 of 24 comparisons: ")
    assert evaluation.notes[-1] in repr(evaluation)
    evaluation.save(tmp_path / "report")
    assert "text up to &lt;/think&gt;" in (tmp_path / "report" / "report.html").read_text()
    assert "Today is 26 Nov 2026." in evaluation._repr_html_()


def test_api_warns_once_of_each_kind(made):
    model = rmjax.load(made.path / "artifact")
    with pytest.warns(UserWarning, match=r"leaves out content of 1 of 1 comparison: assistant: text up to </think>"):
        reward = model.score(THOUGHT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.score(THOUGHT) == reward == model.score(PLAIN)
    with pytest.warns(UserWarning, match=r"system: the whole message"):
        model.score_batch([{"messages": [{"role": "system", "content": "Be kind."}, *PLAIN]}])


def test_describe_shows_the_template_and_the_date(made, capsys, monkeypatch):
    run_describe(f"--data={made.data}", f"--model={made.path / 'artifact'}")
    out = capsys.readouterr().out
    assert "chat template: <|im_start|>system⏎Today is 26 Nov 2026.<|im_end|>⏎<|im_start|>user⏎{user}<|im_end|>" in out
    assert ADDED in out.splitlines()
    assert "leaves out content of 2 of 24 comparisons" in out
    run_describe(f"--data={made.data}", f"--model={made.path / 'tokenizer'}")
    assert "the date 2024-07-26" in capsys.readouterr().out
    run_describe(f"--data={made.data}", f"--model={made.path / 'tokenizer'}", "--template_date=2025-01-02")
    assert "'Today is 02 Jan 2025.'" in capsys.readouterr().out
    set_today(monkeypatch, MORNING_AFTER)
    describe_program._describe_config(made.config)
    assert "the date 2026-11-27" in capsys.readouterr().out


def run_describe(*flags):
    describe_program.FLAGS.values.unparse_flags()
    describe_program.FLAGS.parse(["describe", *flags])
    describe_program.main([])


@pytest.fixture(scope="module")
def server(made):
    with rmjax.serve(str(made.path / "artifact")) as running:
        yield running


def infer(server, messages):
    tensor = {"name": "messages", "datatype": "BYTES", "shape": [1, 1], "data": [json.dumps(messages)]}
    response = httpx2.post(f"{server.url}/v2/models/reward_model/infer", json={"inputs": [tensor]}, trust_env=False)
    return response.json()


def test_server_counts_logs_and_returns_what_the_template_leaves_out(made, server, monkeypatch):
    logged = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: logged.append(text % values))
    kind = "assistant: text up to </think>"
    for _ in range(2):
        found = infer(server, THOUGHT)
        assert found["parameters"] == {"left_out": kind}
    assert logged == [f"model reward_model: the chat template leaves out content of requests: {kind}"]
    metrics = httpx2.get(f"{server.url}/metrics", trust_env=False).text
    assert 'rmjax_left_out_total{model="reward_model"} 2.0' in metrics
    plain = infer(server, PLAIN)
    assert "parameters" not in plain
    assert plain["outputs"] == found["outputs"]
    assert [output["name"] for output in plain["outputs"]] == ["rewards", "exceeded"]
    body = {"messages": [{"role": "system", "content": "Be kind."}, *THOUGHT]}
    found = httpx2.post(f"{server.url}/classify", json=body, trust_env=False).json()
    assert found["left_out"] == f"{kind}, system: the whole message"


def test_clients_see_what_the_template_leaves_out(made, server):
    with (
        server.client() as client,
        pytest.warns(UserWarning, match="leaves out content: assistant: text up to </think>"),
    ):
        (reward,) = client.rewards([THOUGHT])
    assert reward == pytest.approx(float(rewards_of(made, THOUGHT)), abs=1e-5)
    tensor = triton.InferInput("messages", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[json.dumps(THOUGHT).encode()]], object))
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        response = client.infer("reward_model", [tensor]).get_response()
    assert response.parameters["left_out"].string_param == "assistant: text up to </think>"


def rewards_of(made, messages):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rmjax.load(made.path / "artifact").score(messages)


ROLES = [("Human", "gpt"), ("user", "bot"), ("prompter", "ASSISTANT"), ("User", "model")]


@pytest.mark.parametrize("names", ROLES)
def test_other_names_of_roles_score_alike_everywhere(made, server, tmp_path, names):
    named = [{"role": role, "content": message["content"]} for role, message in zip(names, PLAIN, strict=True)]
    turns = [{"from": role, "value": message["content"]} for role, message in zip(names, PLAIN, strict=True)]
    expected = float(rewards_of(made, PLAIN))
    pipeline = load_pipeline(str(made.path / "artifact"))
    source = write(tmp_path / "in.jsonl", [{"messages": named}, {"messages": turns}])
    assert score_file(pipeline, source, tmp_path / "out.jsonl", log=print) == (2, 0)
    found = [json.loads(line)["rewards"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    found += [[float(rewards_of(made, given))] for given in (named, turns)]
    found += [infer(server, given)["outputs"][0]["data"] for given in (named, turns)]
    np.testing.assert_allclose(found, [[expected]] * 6, atol=1e-5)


def test_an_unknown_role_is_refused_everywhere(made, server, tmp_path):
    messages = [{"role": "critic", "content": "Hi"}, {"role": "assistant", "content": "4"}]
    words = "a message has the role 'critic', which the chat template does not know; expected system, user, assistant, "
    assert infer(server, messages)["error"].startswith(f"tensor 'messages', row 0: {words}")
    with pytest.raises(InputError, match=words):
        rewards_of(made, messages)
    config = made.config.copy_and_resolve_references()
    config.data.train = (write(tmp_path / "in.jsonl", [pair(1), pair(2, prompt=messages[:1])]),)
    with pytest.raises(InputError, match=rf"in\.jsonl:2: {words}"):
        train(config, tmp_path / "run", progress=False, log=lambda line: None)


def test_a_template_without_a_clock_stores_no_date(tmp_path, made):
    config = tiny_config.__wrapped__()
    config.train.steps = 1
    train(config, tmp_path / "run", progress=False, log=lambda line: None)
    assert paths.template_date(str(tmp_path / "run")) == ""
    assert not Tokenizer.load("").writes_date
