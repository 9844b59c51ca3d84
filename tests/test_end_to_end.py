"""Train, export, score, evaluate and serve one model: all ways to score agree."""

import asyncio
import json
import shutil

import jax
import numpy as np
import pytest
import transformers

from rmjax.core.errors import InputError
from rmjax.data.records import synthetic
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import load_pipeline
from rmjax.evaluation.score_file import score_file
from rmjax.serving.engine.queue import Engine
from rmjax.serving.protocol import Call
from rmjax.serving.services.reward import RewardService
from rmjax.training.experiment import train
from rmjax.training.export import export
from tests.training.conftest import tiny as tiny_config


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained workdir, its artifact, and a file of pairs."""
    path = tmp_path_factory.mktemp("made")
    config = tiny_config.__wrapped__()
    config.train.steps = 30
    config.optimizer.learning_rate = 3e-3
    train(config, path / "run")
    export(path / "run", path / "artifact")
    records = [item.record for item in synthetic.comparisons("validation", 12)]
    (path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def records(made):
    return [json.loads(line) for line in (made / "pairs.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def rewards(made, records):
    """Rewards [n, 2] of the artifact for the file of pairs, by way of scoring."""
    pipeline = load_pipeline(str(made / "artifact"))
    score_file(pipeline, str(made / "pairs.jsonl"), made / "scores.jsonl")
    scored = [json.loads(line) for line in (made / "scores.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in line.items() if k != "rewards"} for line in scored] == records

    items = read_evaluation_data([str(made / "pairs.jsonl")], pipeline.options)
    evaluate(pipeline, items, title="test").save(made / "evaluation")
    predicted = [json.loads(line) for line in (made / "evaluation" / "predictions.jsonl").read_text().splitlines()]

    async def serve():
        scorer = pipeline.scorer
        engine = Engine(
            scorer.score,
            scorer.warm_up,
            max_length=pipeline.max_length,
            batch_tokens=scorer.rows * scorer.row_length,
            queue_size=64,
        )
        service = RewardService(
            engine, pipeline.tokenizer, vocab_size=scorer.model.decoder.vocab_size, attributes=pipeline.attributes
        )
        await engine.start()
        sentences = np.array([[text.encode()] for text in texts_of(records, pipeline.tokenizer.base)], object)
        answer = await service.infer({"sentences": sentences}, Call())
        await engine.drain()
        return answer["rewards"].reshape(-1, 2)

    found = {"file": scored, "evaluation": predicted}
    found = {way: np.array([line["rewards"] for line in lines]) for way, lines in found.items()}
    return found | {"server": asyncio.run(serve())}


def texts_of(records, tokenizer):
    return [
        record["prompt"] + record[key] + tokenizer.eos_token for record in records for key in ("chosen", "rejected")
    ]


def test_file_evaluation_and_server_give_the_same_rewards(rewards):
    assert np.std(rewards["file"]) > 1e-2  # rewards that differ, so that agreement is meaningful
    for found in rewards.values():
        np.testing.assert_allclose(found, rewards["file"], atol=1e-4)


def test_rewards_equal_those_of_transformers(made, records, rewards):
    """Transformers loads the artifact as a sequence classifier and scores padded batches."""
    torch = pytest.importorskip("torch")
    tokenizer = transformers.AutoTokenizer.from_pretrained(made / "artifact")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(made / "artifact").eval()
    inputs = tokenizer(texts_of(records, tokenizer), padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        expected = model(**inputs).logits.numpy().reshape(-1, 2)
    for found in rewards.values():
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_workdir_and_artifact_give_the_same_rewards(made, tmp_path):
    rewards = []
    for name in ("run", "artifact"):
        score_file(load_pipeline(str(made / name)), str(made / "pairs.jsonl"), tmp_path / name)
        rewards.append([json.loads(line)["rewards"] for line in (tmp_path / name).read_text().splitlines()])
    np.testing.assert_allclose(rewards[0], rewards[1], atol=1e-6)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_an_altered_artifact_is_refused_by_name(made, tmp_path, name):
    broken = tmp_path / "broken"
    shutil.copytree(made / "artifact", broken)
    content = (broken / name).read_bytes()
    (broken / name).write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{name}: altered or truncated"):
        load_pipeline(str(broken))
    (broken / name).unlink()
    with pytest.raises(InputError, match=f"{name}: missing from the artifact"):
        load_pipeline(str(broken))


def test_an_existing_output_is_not_overwritten(made):
    with pytest.raises(InputError, match="exists and is not an empty directory"):
        export(made / "run", made / "artifact")


def test_the_artifact_has_the_metadata_of_its_training_run(made):
    metadata = json.loads((made / "artifact" / "rmjax.json").read_text())
    assert metadata["attributes"] == ["reward"]
    assert metadata["source_step"] > 0
    assert 0 <= metadata["validation"]["accuracy"] <= 1
    assert metadata["max_length"] == 1024
    assert len(jax.devices()) == 8  # so the other tests score on a mesh of several devices
