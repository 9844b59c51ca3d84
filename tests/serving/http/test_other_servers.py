"""Requests of SGLang's, LLaMA-Factory's and Hugging Face's clients."""

import huggingface_hub
import numpy as np
import pytest

from tests.serving.http.test_server import rewards, sigmoid

TEXTS = ["some text", "another one"]


@pytest.mark.parametrize("path", ["/classify", "/v1/classify", "/encode"])
def test_sglang(running, path):
    raw = rewards(running, TEXTS)
    found = running.http.post(path, json={"text": TEXTS, "rid": ["a", "b"]}).json()
    np.testing.assert_allclose([item["embedding"] for item in found], raw, atol=1e-5)
    assert [item["meta_info"] for item in found] == [
        {"id": name, "prompt_tokens": len(text)} for name, text in zip("ab", TEXTS, strict=True)
    ]
    single = running.http.post(path, json={"text": TEXTS[1], "image_data": None}).json()
    np.testing.assert_allclose(single["embedding"], raw[1], atol=1e-5)
    tokens = [running.tokenizer.encode([text], False)[0].tolist() for text in TEXTS]
    found = running.http.post(path, json={"input_ids": tokens}).json()
    np.testing.assert_allclose([item["embedding"] for item in found], raw, atol=1e-5)
    single = running.http.post(path, json={"input_ids": tokens[0]}).json()
    np.testing.assert_allclose(single["embedding"], raw[0], atol=1e-5)


def test_llama_factory(running):
    raw = rewards(running, TEXTS)[:, 0]
    found = running.http.post("/v1/score/evaluation", json={"model": "model", "messages": TEXTS}).json()
    assert found["scores"] == pytest.approx(raw.tolist(), abs=1e-5)
    assert found["object"] == "score.evaluation"
    cut = running.http.post("/v1/score/evaluation", json={"messages": ["abcdef" * 20], "max_length": 5}).json()
    assert cut["scores"] == pytest.approx(rewards(running, ["abcde"])[:, 0].tolist(), abs=1e-5)


def test_hugging_face(running):
    raw = rewards(running, TEXTS)[:, 0]
    client = huggingface_hub.InferenceClient(model=str(running.http.base_url))
    for function, expected in (("none", raw[0]), (None, sigmoid(raw[0])), ("sigmoid", sigmoid(raw[0])), ("softmax", 1)):
        (found,) = client.text_classification(TEXTS[0], function_to_apply=function)
        assert (found.label, found.score) == ("reward", pytest.approx(expected, abs=1e-5))
    body = {"inputs": [{"text": "a question", "text_pair": " an answer"}], "parameters": {"function_to_apply": "none"}}
    ((found,),) = running.http.post("/", json=body).json()
    joined = rewards(running, ["a question an answer"], add_eos=True)[0, 0]
    assert found["score"] == pytest.approx(joined, abs=1e-5)


def test_health_and_models(running):
    assert running.http.get("/health").status_code == 200
    (entry,) = [entry for entry in running.http.get("/v1/models").json()["data"] if entry["id"] == "reward_model"]
    assert (entry["object"], entry["owned_by"], entry["max_model_len"]) == ("model", "rmjax", 64)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/encode", {}, "the body has neither of the fields 'text' and 'input_ids'; expected one"),
        ("/encode", {"text": "a", "input_ids": [1]}, "has both of the fields 'text' and 'input_ids'"),
        ("/encode", {"text": "a", "image_data": "x.png"}, "'image_data' of the body is given; the model reads text"),
        ("/encode", {"text": ["a", "b"], "rid": ["x"]}, "'rid' of the body has 1 names; expected 2"),
        ("/encode", {"text": []}, "'text' of the body is []; expected a text"),
        ("/encode", {"input_ids": [[1], [999]]}, "'input_ids[1]' of the body holds the token 999"),
        ("/classify", {"text": "a", "input": "a"}, "vLLM's field 'input' or 'messages' beside SGLang's"),
        ("/classify", {"text": 1}, "'text' of the body is 1; expected"),
        ("/v1/score/evaluation", {"messages": []}, "'messages' of the body is []; expected array of length >= 1"),
        ("/v1/score/evaluation", {"messages": ["a"], "max_length": 0}, "'max_length' of the body is 0"),
        ("/v1/score/evaluation", {"messages": ["a", "b" * 65]}, "'messages[1]' of the body has 65 tokens"),
        ("/", {"inputs": []}, "'inputs' of the body is []; expected at least one text"),
        ("/", {"inputs": ["a", {"text": "a", "text_pair": "b"}]}, "holds both texts and pairs; expected one kind"),
        ("/", {"inputs": "a", "parameters": {"function_to_apply": "relu"}}, "is 'relu'; expected 'none', 'sigmoid'"),
        ("/", {"inputs": "a", "parameters": {"top_k": 0}}, "'parameters.top_k' of the body is 0"),
    ],
)
def test_invalid_requests_are_refused_by_name(running, path, body, words):
    answer = running.http.post(path, json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
