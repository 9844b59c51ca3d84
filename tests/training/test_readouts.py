"""Readouts through a whole run: training, artifact, evaluation, serving and continued training agree on them."""

import dataclasses
import json

import httpx2
import jax
import numpy as np
import pytest

import rmjax
from rmjax.api.model import Model
from rmjax.core import readouts
from rmjax.core.mesh import make_mesh
from rmjax.data.packing.rows import fill_rows
from rmjax.data.schema import packed_spec
from rmjax.data.tokens.trees import make_tree
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.evaluation.scoring import Scorer
from rmjax.models.workdir import Workdir
from rmjax.training.experiment import train
from rmjax.training.export import export

RECORDS = [
    {"prompt": f"What is {i}?", "chosen": "yes " * (1 + i % 3) + "sure", "rejected": "yes no " * (1 + i % 2)}
    for i in range(12)
]


def chat(prompt, response):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


@pytest.fixture
def chats(tiny, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    tiny.data.train = tiny.data.validation = (str(tmp_path / "pairs.jsonl"),)
    tiny.data.strings = "chat"
    tiny.train.update(steps=2, batch_size=4)
    return tiny


def reference(pipeline, prompt, response):
    """Returns the reward by the definition: one conversation in a row, every hidden state, plain NumPy."""
    tokenizer, scorer = pipeline.tokenizer, pipeline.scorer
    (tokens,) = tokenizer.encode([chat(prompt, response)])
    batch = fill_rows([[make_tree([tokens])]], packed_spec(1, len(tokens), 1, 0, 0))
    with jax.set_mesh(make_mesh([1, 1, 1, 1])):
        hidden = np.asarray(scorer.model.hidden(jax.device_get(scorer.params), batch), np.float64)[0]
    last = {
        readouts.LAST_TOKEN: slice(len(tokens) - 1, None),
        readouts.EOS: tokens == tokenizer.base.eos_token_id,
        "token:<|im_end|>": int(np.flatnonzero(tokens == tokenizer.base.convert_tokens_to_ids("<|im_end|>"))[-1]),
        readouts.CONVERSATION_MEAN: slice(0, None),
        # "\n" + response + "<|im_end|>" + "\n", a token per character or special token
        readouts.RESPONSE_MEAN: slice(len(tokens) - len(response) - 3, None),
    }[tokenizer.readout]
    return float(
        np.atleast_2d(hidden[last]).mean(axis=0) @ np.asarray(scorer.params["head"]["kernel"], np.float64)[:, 0]
    )


@pytest.mark.parametrize("readout", ["eos", "token:<|im_end|>", "conversation_mean", "response_mean"])
def test_all_programs_read_the_reward_at_the_same_place(chats, tmp_path, readout):
    chats.data.readout = readout
    train(chats, tmp_path / "run")
    metadata = export(tmp_path / "run", tmp_path / "artifact")
    assert metadata["pooling"] == readout
    assert (metadata["transformers_class"] is None) == readouts.is_mean(readout)
    run, artifact = (load_pipeline(str(tmp_path / name)) for name in ("run", "artifact"))
    responses = ["yes", "yes sure", "no"]
    record = {"prompt": "What is 5?", "responses": responses}
    expected = [reference(artifact, record["prompt"], response) for response in responses]
    for pipeline in (run, artifact):
        np.testing.assert_allclose(scores(pipeline, record), expected, atol=2e-5)
    # Each response alone, and through the server's engine, which groups by common prefixes.
    alone = [scores(artifact, {"prompt": record["prompt"], "responses": [response]})[0] for response in responses]
    np.testing.assert_allclose(alone, expected, atol=2e-5)
    np.testing.assert_allclose(served(artifact, record), expected, atol=2e-5)
    # A tree that is too long for a row is split into responses.
    whole = artifact.scorer
    scorer = Scorer(whole.model, whole.params, artifact.scorer._mesh, 64, whole.rows)
    short = dataclasses.replace(artifact, scorer=scorer)
    np.testing.assert_allclose(scores(short, record), expected, atol=2e-5)


def scores(pipeline, record):
    return Model("", pipeline).score_batch([record])[0]


def served(pipeline, record):
    """Returns the rewards of messages by the server; those of their tokens are the same."""
    messages = [chat(record["prompt"], response) for response in record["responses"]]
    tokens = pipeline.tokenizer.encode(messages)
    with rmjax.serve(Model("", pipeline)) as server, server.client() as client:
        found = client.rewards(messages)
        body = lambda ids: json.dumps({"model": "reward_model", "input": ids.tolist()})
        post = lambda ids: httpx2.post(f"{server.url}/pooling", content=body(ids), trust_env=False)
        assert post(tokens[0]).json()["data"][0]["data"] == pytest.approx([found[0]], abs=2e-5)
        if pipeline.tokenizer.readout_place.depends_on_tokens:
            refused = post(tokens[0][:3])
            assert refused.status_code == 400
            assert "data.readout" in refused.text
    return found


def test_a_run_continues_with_the_readout_of_its_model(chats, tmp_path):
    chats.data.readout = "response_mean"
    train(chats, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "artifact")
    chats.data.readout = ""
    assert train(chats, tmp_path / "run").step == 2  # resumed
    for name in ("run", "artifact"):
        chats.model.path = str(tmp_path / name)
        train(chats, tmp_path / f"from {name}")
        assert Workdir(tmp_path / f"from {name}").config().data.readout == "response_mean"
        assert load_pipeline(str(tmp_path / f"from {name}")).scorer.model.mean_readout


def test_stored_features_of_a_mean_give_the_run_that_computes_them(chats, tmp_path):
    chats.data.readout, chats.train.trainable = "response_mean", "head"
    metrics = []
    for cached in (True, False):
        chats.train.cache_features = cached
        train(chats, tmp_path / str(cached))
        lines = (tmp_path / str(cached) / "metrics.jsonl").read_text().splitlines()
        metrics.append([json.loads(line)["loss"] for line in lines if "loss" in line])
    np.testing.assert_allclose(*metrics, rtol=1e-5)
