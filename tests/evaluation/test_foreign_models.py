"""Scoring with reward models of other tools: where their rewards are read, and what is said of their head."""

import json

import numpy as np
import pytest
import transformers

from rmjax.data.tokens.tokenizer import byte_level
from rmjax.evaluation.evaluate import evaluate, read_evaluation_data
from rmjax.evaluation.pipeline import describe_model, load_pipeline
from rmjax.models import loading

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
    assert loading.data_options(str(path)) == ({"step_readout": "separator"}, 0)


def test_the_head_is_described(trl_prm):
    path = str(trl_prm[0])
    assert describe_model(path, load_pipeline(path)) == (
        f"model: {path}, a Hugging Face model; reward head: score [2, 64] with bias, two classes: the reward is the "
        "difference of their logits"
    )
