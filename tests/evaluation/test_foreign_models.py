"""Scoring with reward models of other tools: where their rewards are read, and what is said of their head."""

import json
import shutil

import numpy as np
import pytest
import transformers

from rmjax.core import config as configs
from rmjax.data.records.sources import memory_source
from rmjax.data.tokens.byte_level import byte_level
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import describe_model, load_pipeline
from rmjax.models import paths
from rmjax.training.experiment import train
from tests.training.test_export import save_foreign

torch = pytest.importorskip("torch")

RECORDS = [
    {"prompt": "What is 2 + 3 + 4?", "completions": [" 2 + 3 = 5.", " 5 + 4 = 8."], "labels": [True, False]},
    {"prompt": "Count.", "completions": [" One", " two", " three"], "labels": [True, True, False]},
]


@pytest.fixture(scope="module")
def trl_prm(tmp_path_factory):
    """A tiny random token classifier of two classes with its tokenizer, as TRL's PRMTrainer saves it, and its path."""
    path, tokenizer = tmp_path_factory.mktemp("prm"), byte_level()
    options = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), num_labels=2, **options)
    model = transformers.LlamaForTokenClassification(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.15)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path, model, tokenizer


def test_a_process_model_of_trl_is_read_at_the_separator_after_each_step(trl_prm, tmp_path):
    """TRL joins prompt and steps with nothing between, and a separator after each step, at whose token it reads."""
    path, model, tokenizer = trl_prm
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    pipeline = load_pipeline(str(path))
    items = read_evaluation_data([tmp_path / "steps.jsonl"], pipeline.options)
    for record, found in zip(RECORDS, pipeline.rewards(items), strict=True):
        ids, ends = tokenizer(record["prompt"])["input_ids"], []
        for step in record["completions"]:
            ids += tokenizer(step)["input_ids"] + tokenizer("\n")["input_ids"]
            ends.append(len(ids) - 1)
        with torch.no_grad():
            probability = torch.softmax(model(torch.tensor([ids])).logits, -1)[0, ends, 1].numpy()
        np.testing.assert_allclose(1 / (1 + np.exp(-found[:, 0])), probability, atol=1e-6)
    assert "auc" in evaluate(pipeline, items).metrics
    assert paths.data_options(str(path)) == ({"step_readout": "separator"}, 0)


def test_the_head_is_described(trl_prm):
    path = str(trl_prm[0])
    assert describe_model(path, load_pipeline(path)) == (
        f"model: {path}, a Hugging Face model; reward head: score [2, 64] with bias, two classes: the reward is the "
        "difference of their logits"
    )


def test_a_rotary_scaling_that_is_fixed_by_the_length_is_told(trl_prm, tmp_path):
    path = shutil.copytree(trl_prm[0], tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 4.0}
    scaling |= {"rope_theta": 1e4, "original_max_position_embeddings": 128}
    (path / "config.json").write_text(json.dumps(config | {"rope_parameters": scaling}))
    assert describe_model(str(path), load_pipeline(str(path))).endswith(
        "; rotary scaling longrope: long_factor in every conversation, since they may have 2048 tokens (more than 128)"
    )
    training = configs.default()
    training.model.path, training.data.max_length, training.data.synthetic_train = str(path), 100, 20
    training.train.update(trainable="head", steps=1, batch_size=4)
    training.data.synthetic_validation, training.mesh.data, output = 8, 1, []
    training.objective.attributes = ("correct",)
    train(training, tmp_path / "run", log=output.append)
    assert (
        "rotary scaling longrope: short_factor in every conversation, since they have at most 100 tokens (of 128)"
        in (output)
    )


@pytest.mark.parametrize("key", [{"pooling": "mean"}, {"reward_token_id": 2}], ids=str)
def test_rewards_are_read_where_config_json_says(tmp_path, key):
    """The mean over all tokens, as OpenAssistant's models, or a token that is added, as InternLM2's."""
    weight = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    save_foreign(tmp_path, byte_level(), 260, {"score.weight": weight})
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | key))
    pipeline = load_pipeline(str(tmp_path))
    model, tokenizer = transformers.LlamaModel.from_pretrained(tmp_path).eval(), pipeline.tokenizer.base
    prompt, responses = "What is 2 + 3?", [" 5", " 6, or so"]
    source = memory_source([{"prompt": prompt, "chosen": responses[0], "rejected": responses[1]}])
    (found,) = pipeline.rewards(read_evaluation_data([source], pipeline.options))
    for reward, response in zip(found[:, 0], responses, strict=True):
        ids = [*tokenizer(prompt + response)["input_ids"], tokenizer.eos_token_id]
        ids += [key["reward_token_id"]] if "reward_token_id" in key else []
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[0].numpy()
        read = hidden.mean(axis=0) if "pooling" in key else hidden[-1]
        assert reward == pytest.approx(float(read @ weight[0]), rel=1e-4, abs=1e-5)
