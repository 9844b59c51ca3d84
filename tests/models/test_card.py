"""The model card of an artifact, as the Hugging Face hub reads it."""

import huggingface_hub
import pytest

from rmjax.models import card

METADATA = {
    "source": "owner/base-model",
    "source_step": 1200,
    "head": "linear",
    "attributes": ["helpful|ness", "safe"],
    "validation": {"accuracy": 0.75, "accuracy_low": 0.7, "loss": 0.5, "mse/safe": 1, "reward_mean": 0.1},
    "validation_data": ["owner/pairs", "/data/held out: pairs.jsonl"],
    "max_length": 4096,
    "pooling": "last_token",
}


def test_the_hub_reads_base_model_data_and_results(tmp_path):
    card.write(tmp_path, METADATA, "LlamaForSequenceClassification")
    found = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert found.data.base_model == "owner/base-model"
    assert found.data.datasets == ["owner/pairs"]
    assert (found.data.library_name, found.data.pipeline_tag) == ("transformers", "text-classification")
    results = {result.metric_type: result.metric_value for result in found.data.eval_results}
    assert results == {"accuracy": 0.75, "loss": 0.5, "mse/safe": 1.0}
    assert "| checkpoint | step 1,200 |" in found.text
    assert "| rewards | helpful\\|ness, safe |" in found.text
    assert "LlamaForSequenceClassification" in found.text


@pytest.mark.parametrize("metadata", [{}, {"source": "random initialization"}, {"source": "a/b/c", "validation": None}])
def test_what_is_not_known_is_left_out(tmp_path, metadata):
    card.write(tmp_path, metadata, None)
    found = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert found.data.base_model is None
    assert not found.data.eval_results
    assert found.data.library_name == "rmjax"
    assert card.facts(metadata)[-1][0] == "license"
