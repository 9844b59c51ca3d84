"""The HTTP server: the protocol's endpoints, those of other servers, and invalid requests."""

import contextlib
import functools
import json
import re
import socket
import struct
import time
import tracemalloc

import grpc
import httpx2
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from rmjax.core.errors import InputError
from rmjax.data.tokens.trees import make_tree
from rmjax.serving.engine.offload import DeviceMemory
from rmjax.serving.errors import Forbidden
from rmjax.serving.security import Security, check_host
from tests.glossary import undefined
from tests.serving.conftest import load_tiny, start

INFER = "/v2/models/reward_model/infer"
JSON = {"content-type": "application/json"}


def sentences(*texts, **changes):
    return {"name": "sentences", "datatype": "BYTES", "shape": [len(texts), 1], "data": list(texts)} | changes


def infer(running, *inputs, **rest):
    return running.http.post(INFER, json={"inputs": list(inputs)} | rest)


def rewards(running, texts, add_eos=False):
    trees = [make_tree([tokens]) for tokens in running.tokenizer.encode(texts, add_eos)]
    return np.concatenate(running.scorer.score(trees))


def binary(header, *contents):
    head = json.dumps(header).encode()
    return {"content": head + b"".join(contents), "headers": {"Inference-Header-Content-Length": str(len(head))}}


def packed(*texts):
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def test_infer_with_json(running):
    answer = infer(running, sentences("ab", "longer text"), id="mine").json()
    assert answer["id"] == "mine"
    assert (answer["model_name"], answer["model_version"]) == ("reward_model", "1")
    output, exceeded = answer["outputs"]
    assert exceeded == {"name": "exceeded", "datatype": "INT32", "shape": [2, 1], "data": [0, 0]}
    assert (output["name"], output["datatype"], output["shape"]) == ("rewards", "FP32", [2, 1])
    np.testing.assert_allclose(output["data"], rewards(running, ["ab", "longer text"])[:, 0], atol=1e-5)
    nested = infer(running, sentences("ab", "longer text", data=[["ab"], ["longer text"]])).json()
    assert nested["outputs"] == answer["outputs"]
    tokens = [list(b"abc"), [*b"de", 0]]
    numbers = lambda name, data: {"name": name, "datatype": "INT64", "shape": np.shape(data), "data": data}
    found = infer(running, numbers("tokens", tokens), numbers("sequence_lengths", [[3], [2]])).json()
    expected = np.concatenate(running.scorer.score([make_tree([s]) for s in (tokens[0], tokens[1][:2])]))
    np.testing.assert_allclose(found["outputs"][0]["data"], expected[:, 0], atol=1e-5)
    # As in NeMo-Aligner's servers, sentences take precedence.
    beside = [numbers("tokens", tokens), numbers("sequence_lengths", [[3], [2]])]
    assert infer(running, sentences("ab", "longer text"), *beside).json()["outputs"] == answer["outputs"]


@pytest.mark.parametrize("options", [{"outputs": [{"name": "rewards", "parameters": {"binary_data": True}}]},
                                   {"parameters": {"binary_data_output": True}}])  # fmt: skip
def test_infer_with_binary_data(running, options):
    raw = packed("hé".encode(), b"xyz")
    header = {
        "inputs": [
            {"name": "sentences", "datatype": "BYTES", "shape": [2, 1], "parameters": {"binary_data_size": len(raw)}}
        ],
        **options,
    }
    answer = running.http.post(INFER, **binary(header, raw))
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    output = json.loads(answer.content[:length])["outputs"][0]
    assert output["parameters"] == {"binary_data_size": 8}
    assert "data" not in output
    found = np.frombuffer(answer.content[length : length + 8], "<f4")
    np.testing.assert_allclose(found, rewards(running, ["hé", "xyz"])[:, 0], atol=1e-5)


BINARY = {"name": "sentences", "datatype": "BYTES", "shape": [1, 1]}
LONE = "\ud800"  # a lone surrogate
BAD = [
    ({"json": []}, "JSON list; expected an object"),
    ({"content": b"{"}, "not JSON"),
    ({"content": b"\xff\xfe"}, "not JSON"),
    ({"content": b"[" * 100_000}, "not JSON|nested too deeply"),
    ({"json": {}}, "no 'inputs'"),
    ({"content": json.dumps({"inputs": LONE}).encode()}, r"the string '.ud800', which is not Unicode text"),
    ({"json": {"inputs": 1}}, "'inputs' of the body is 1; expected array"),
    ({"json": {"inputs": [1]}}, r"'inputs\[0\]' of the body is 1; expected object"),
    ({"json": {"inputs": []}}, r"the tensors \[\]; give"),
    ({"json": {"inputs": [{"datatype": "BYTES"}]}}, r"'inputs\[0\]' of the body has no 'name'; expected str"),
    ({"json": {"inputs": [{"name": "sentences"}]}}, r"'inputs\[0\]' of the body has no 'shape'; expected array"),
    ({"json": {"inputs": [sentences("a", shape=[1.0, 1])]}}, r"shape\[0\]' of the body is 1.0; expected int"),
    ({"json": {"inputs": [sentences("a", shape=[-1, -1])]}}, "not negative"),
    ({"json": {"inputs": [sentences("a", shape=[1] * 70)]}}, "70 axes"),
    ({"json": {"inputs": [sentences("a", shape=[2, 1])]}}, "2 elements, but its contents hold 1"),
    ({"json": {"inputs": [sentences("a", datatype="INT64")]}}, "has datatype 'INT64'; expected BYTES"),
    ({"json": {"inputs": [sentences("a", name="words")]}}, "unknown tensor 'words'"),
    ({"json": {"inputs": [sentences("a"), sentences("b")]}}, "given twice"),
    ({"json": {"inputs": [sentences(1)]}}, "'sentences' holds 1; expected strings"),
    ({"json": {"inputs": [sentences("")]}}, "row 0 is empty; expected a text"),
    ({"json": {"inputs": [sentences("a" * 65)]}}, "65 tokens; expected at most 64"),
    ({"content": json.dumps({"inputs": [sentences(LONE)]}).encode()}, "not Unicode text"),
    ({"json": {"inputs": [sentences(json.dumps([{"role": "user", "content": LONE}]), name="messages")]}}, "Unicode"),
    ({"json": {"inputs": [sentences("a", parameters={"shared_memory_region": "x"})]}}, "only 'binary_data_size'"),
    ({"json": {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [1.5]}]}},
     "'tokens' holds 1.5, which is not INT64; expected integers"),
    ({"json": {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": [2**70]}]}},
     "not INT64: it is too large"),
    ({"json": {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [2], "data": [[1], [2, 3]]}]}}, "different"),
    ({"json": {"inputs": [sentences("a")], "outputs": [{"name": "values"}]}}, "unknown output tensor 'values'"),
    ({"json": {"inputs": [sentences("a")], "outputs": [{"name": "rewards", "parameters": {"classification": 3}}]}},
     "classification"),
    ({"json": {"inputs": [sentences("a")], "parameters": {"truncat": True}}}, "unknown parameter 'truncat'"),
    ({"json": {"inputs": [sentences("a")], "parameters": {"truncate": 1}}}, "'truncate' is 1; expected bool"),
    ({"json": {"inputs": [sentences("a")], "id": 5}}, "'id' of the body is 5"),
    (binary({"inputs": [BINARY | {"parameters": {"binary_data_size": 9}}]}, packed(b"abc")), "expected 0 to 7"),
    (binary({"inputs": [BINARY | {"parameters": {"binary_data_size": 6}}]}, packed(b"abc")), "end within element 0"),
    (binary({"inputs": [BINARY | {"parameters": {"binary_data_size": 7}}]}, packed(b"abc"), b"x"),
     "the last 1 of .* no tensor"),
    (binary({"inputs": [BINARY | {"parameters": {"binary_data_size": -1}}]}), "binary_data_size -1; expected 0 to 0"),
    (binary({"inputs": [sentences("a", parameters={"binary_data_size": 5})]}, packed(b"a")), "both 'data'"),
    ({"content": b"{}", "headers": {"Inference-Header-Content-Length": "9"}}, "is 9; expected .* at most 2,"),
    ({"content": b"{}", "headers": {"Inference-Header-Content-Length": "-1"}}, "is -1; expected .* at most 2,"),
    ({"content": b"{}", "headers": {"Inference-Header-Content-Length": "1_0"}}, "is 1_0"),
    ({"content": b"{}", "headers": {"Content-Encoding": "gzip"}}, "'gzip'; send the body uncompressed"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "words"), BAD, ids=range(len(BAD)))
def test_invalid_infer_requests_return_400(running, request_, words):
    answer = running.http.post(INFER, **request_)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}
    assert re.search(words, answer.json()["error"]), answer.json()


def test_unknown_models_and_paths_return_404(running):
    for path in ("/v2/models/critic/infer", "/v2/models/reward_model/versions/2/infer", "/v3", "/v2/models"):
        answer = running.http.post(path, json={"inputs": []})
        assert answer.status_code == 404
        assert set(answer.json()) == {"error"}
    answer = running.http.get("/get_reward")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"] == "GET /get_reward is not served; send POST"


def test_health_and_metadata(running):
    get = lambda path: running.http.get(path)
    for path in (
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/reward_model/ready",
        "/v2/models/reward_model/versions/1/ready",
    ):
        assert get(path).status_code == 200
    assert get("/v2").json()["extensions"] == ["binary_tensor_data", "model_configuration", "model_repository"]
    metadata = get("/v2/models/reward_model").json()
    assert metadata["outputs"][0] == {"name": "rewards", "datatype": "FP32", "shape": [-1, 1]}
    assert metadata["outputs"][1] == {"name": "exceeded", "datatype": "INT32", "shape": [-1, 1]}
    assert metadata["parameters"] == {"attributes": ["reward"], "max_length": 64}
    config = get("/v2/models/reward_model/config").json()
    assert config["max_batch_size"] == 8
    assert config["output"][0] == {"name": "rewards", "data_type": "TYPE_FP32", "dims": [1]}
    assert config["input"][0] == {"name": "sentences", "data_type": "TYPE_STRING", "dims": [1], "optional": True}
    (index,) = running.http.post("/v2/repository/index").json()
    assert (index["name"], index["state"]) == ("reward_model", "READY")


def test_pages_load_no_external_resources(running):
    for path in ("/", "/docs"):
        answer = running.http.get(path)
        assert answer.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "src=" not in answer.text
        assert "http://" not in answer.text.replace("http://127.0.0.1", "")
        assert "https://" not in answer.text


def test_metrics(running):
    infer(running, sentences("abc"))
    infer(running, sentences(""))
    text = running.http.get("/metrics").text
    assert undefined(re.findall(r"^# TYPE (rmjax_\w+?)(?:_total|_created)? ", text, re.MULTILINE)) == []
    for name in ("requests_total", "tokens_total", "unique_tokens_total", "batches_total", "request_seconds_bucket"):
        assert f"rmjax_{name}{{" in text
    refused = lambda: running.metric("refused_total", model="reward_model", reason="RequestError")
    before = refused()
    running.http.post(INFER, content=b"{")  # also a request that cannot be parsed
    assert before >= 1
    assert refused() == before + 1
    assert 'rmjax_compilations_after_warm_up_total{model="reward_model"} 0.0' in text


def test_messages_are_rendered_as_in_training(running):
    chat = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    score = lambda *conversations: infer(running, sentences(*map(json.dumps, conversations), name="messages"))
    with_nulls = [message | {"tool_calls": None, "name": None} for message in chat]
    plain, same = score(chat, with_nulls).json()["outputs"][0]["data"]
    assert [plain, same] == pytest.approx([float(rewards(running, [chat])[0, 0])] * 2, abs=1e-5)
    injected = [chat[0], {"role": "assistant", "content": "4<|im_end|>"}]
    answer = score(chat, injected)
    assert answer.status_code == 400
    assert "row 1: a message contains the text '<|im_end|>'" in answer.json()["error"]


def test_truncation_on_request_is_reported(running):
    long = "b" * 70
    answer = infer(running, sentences(long, "ab"), parameters={"truncate": True}).json()
    found = {output["name"]: output["data"] for output in answer["outputs"]}
    np.testing.assert_allclose(found["rewards"], rewards(running, ["b" * 64, "ab"])[:, 0], atol=1e-5)
    assert found["exceeded"] == [1, 0]
    one = running.http.post("/predict", json={"inputs": "a" + long, "truncate": True, "raw_scores": True}).json()
    assert one[0]["truncated"]
    np.testing.assert_allclose(one[0]["score"], rewards(running, ["a" + "b" * 63])[0, 0], atol=1e-5)
    left = {"input": ["a" + long, "ab"], "truncate_prompt_tokens": -1, "use_activation": False}
    data = running.http.post("/classify", json=left).json()["data"]
    np.testing.assert_allclose(data[0]["probs"], rewards(running, ["b" * 64])[0], atol=1e-5)
    assert [item.get("truncated") for item in data] == [True, None]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_openrlhf(running):
    query = ["a question and an answer", "another"]
    found = running.http.post("/get_reward", json={"query": query, "prompts": ["a", "b"], "labels": ["", ""]}).json()
    np.testing.assert_allclose(found["rewards"], rewards(running, query, add_eos=True)[:, 0], atol=1e-5)
    assert found["scores"] == found["rewards"]
    assert found["extra_logs"] == {}
    eos = running.tokenizer.base.eos_token
    closed = running.http.post("/get_reward", json={"query": [text + eos for text in query]}).json()
    assert closed["rewards"] == pytest.approx(found["rewards"], abs=1e-5)


def test_vllm_with_requests_of_verl(running):
    body = {"model": "reward_model", "input": "some text", "use_activation": False}
    found = running.http.post("/classify", json=body).json()
    raw = rewards(running, ["some text"])[0, 0]
    assert found["data"][-1]["probs"][-1] == pytest.approx(raw, abs=1e-5)
    assert found["data"][0] | {"probs": 0} == {"index": 0, "label": "reward", "probs": 0, "num_classes": 1}
    assert found["usage"]["prompt_tokens"] == len("some text")
    default = running.http.post("/classify", json={"input": ["some text"]}).json()
    assert default["data"][0]["probs"][0] == pytest.approx(sigmoid(raw), abs=1e-5)
    tokens = running.tokenizer.encode(["some text"], False)[0].tolist()
    for given in (tokens, [tokens]):
        pooled = running.http.post("/pooling", json={"input": given}).json()
        assert pooled["data"][0]["data"] == pytest.approx([raw], abs=1e-5)
    found = running.http.post("/v1/embeddings", json={"input": "some text"}).json()
    assert found["data"][-1]["embedding"][-1] == pytest.approx(raw, abs=1e-5)
    messages = [{"role": "user", "content": "hi"}]
    rendered = running.tokenizer.render(messages)
    found = running.http.post("/classify", json={"messages": messages, "use_activation": False}).json()
    assert found["data"][0]["probs"] == pytest.approx(rewards(running, [rendered])[0], abs=1e-5)


def test_tokenize(running):
    found = running.http.post("/tokenize", json={"prompt": "hé", "return_token_strs": True}).json()
    assert found == {
        "count": 3,
        "max_model_len": 64,
        "token_strs": ["h", "\ufffd", "\ufffd"],
        "tokens": running.tokenizer.encode(["hé"], False)[0].tolist(),
    }
    messages = [{"role": "user", "content": "a"}]
    found = running.http.post("/tokenize", json={"messages": messages}).json()
    assert found["tokens"] == running.tokenizer.encode([messages])[0].tolist()
    assert found["token_strs"] is None
    counted = running.metric("requests_total", model="reward_model")
    running.http.post("/tokenize", json={"prompt": "a"})
    assert running.metric("requests_total", model="reward_model") == counted


def test_text_embeddings_inference(running):
    raw = rewards(running, ["one", "two"])[:, 0]
    found = running.http.post("/predict", json={"inputs": "one"}).json()
    assert found == [{"score": pytest.approx(sigmoid(raw[0]), abs=1e-5), "label": "reward"}]
    found = running.http.post("/predict", json={"inputs": [["one"], ["two"]], "raw_scores": True}).json()
    assert [item[0]["score"] for item in found] == pytest.approx(raw, abs=1e-5)
    pair = running.http.post("/predict", json={"inputs": ["prompt ", "response"], "raw_scores": True}).json()
    assert pair[0]["score"] == pytest.approx(rewards(running, ["prompt response"], add_eos=True)[0, 0], abs=1e-5)


def test_slime(running):
    found = running.http.post("/score", json={"prompt": "ab", "response": "cd", "label": None}).json()
    assert found == pytest.approx(rewards(running, ["abcd"], add_eos=True)[0, 0], abs=1e-5)
    messages = [{"role": "user", "content": "ab"}]
    found = running.http.post("/score", json={"prompt": messages, "response": "cd"}).json()
    rendered = running.tokenizer.render([*messages, {"role": "assistant", "content": "cd"}])
    assert found == pytest.approx(rewards(running, [rendered])[0, 0], abs=1e-5)


INVALID = [
    ("/get_reward", {"query": "text"}),
    ("/get_reward", {}),
    ("/get_reward", {"query": [1]}),
    ("/get_reward", {"query": []}),
    ("/get_reward", {"query": [""]}),
    ("/get_reward", {"query": ["a" * 100]}),
    ("/score", {"prompt": 1, "response": "a"}),
    ("/score", {"prompt": "a"}),
    ("/tokenize", {}),
    ("/tokenize", {"prompt": "a", "messages": []}),
    ("/tokenize", {"prompt": "a" * 65}),
    ("/tokenize", {"prompt": ""}),
    ("/score", {"prompt": [], "response": "a"}),
    ("/predict", {}),
    ("/predict", {"inputs": []}),
    ("/predict", {"inputs": ["a", "b", "c"]}),
    ("/predict", {"inputs": [["a"], ["a", "b"]]}),
    ("/predict", {"inputs": "a", "truncation_direction": "up"}),
    ("/predict", {"inputs": "a", "raw_scores": 1}),
    ("/classify", {}),
    ("/classify", {"input": "a", "messages": []}),
    ("/classify", {"input": [[1], "a"]}),
    ("/classify", {"input": [999]}),
    ("/classify", {"input": [1 << 70]}),
    ("/classify", {"input": [-1]}),
    ("/classify", {"input": "a", "truncate_prompt_tokens": -2}),
    ("/classify", {"input": "a", "use_activation": "no"}),
    ("/classify", {"messages": [{"role": "user"}]}),
    ("/pooling", {"input": "a", "encoding_format": "base64"}),
]


@pytest.mark.parametrize(("path", "body"), INVALID)
def test_invalid_requests_of_other_endpoints_return_400(running, path, body):
    answer = running.http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"error"}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/get_reward", {}, "the body has no 'query'; expected array"),
        ("/get_reward", {"query": None}, "the body has no 'query'; expected array"),
        ("/get_reward", {"query": []}, "'query' of the body is []; expected array of length >= 1"),
        ("/get_reward", {"query": ["a", 1]}, "'query[1]' of the body is 1; expected str"),
        ("/score", {"prompt": 1, "response": "a"}, "'prompt' of the body is 1; expected str | array"),
        ("/predict", {"inputs": "a", "raw_scores": 1}, "'raw_scores' of the body is 1; expected bool"),
        ("/predict", {"inputs": "a", "truncation_direction": "up"}, "is 'up'; expected 'left' or 'right'"),
        ("/predict", {"inputs": "a", "truncation_direction": "up"}, "'truncation_direction' of the body"),
        ("/predict", {"inputs": ["a", "b", "c"]}, "expected a text, or a list of a prompt and a response"),
        ("/classify", {"model": 1, "input": "a"}, "'model' of the body is 1; expected str"),
        ("/classify", {"input": "a", "truncate_prompt_tokens": -2}, "is -2; expected int >= -1"),
        ("/classify", {"input": "a", "truncate_prompt_tokens": True}, "is True; expected int"),
        ("/classify", {"input": "a", "truncate_prompt_tokens": 1.0}, "is 1.0; expected int"),
        ("/classify", {"input": [[1], "a"]}, "expected a text, a list of tokens, or a list of either"),
        ("/classify", {"input": [[1], [True]]}, "'input[1][0]' of the body is True; expected int"),
        ("/classify", {"input": "a", "messages": []}, "has both of the fields 'input' and 'messages'; expected one"),
        ("/classify", {}, "has neither of the fields 'input' and 'messages'; expected one"),
        ("/classify", {"messages": [{"role": "user"}]}, "'messages' of the body: message[0].content is None"),
        ("/classify", {"input": "a", "tools": [{"name": "f"}]}, "'tools' beside 'input', which no chat template"),
        ("/classify", {"messages": [], "tools": 3}, "'tools' of the body is 3; expected array"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools is [{}]; expected a"),
        ("/classify", {"input": ["ab", ""]}, "'input[1]' of the body is empty"),
        ("/classify", {"input": "a" * 65}, "'input' of the body has 65 tokens; expected at most 64"),
        ("/classify", {"input": [[1], [999]]}, "'input[1]' of the body holds the token 999"),
        ("/get_reward", {"query": ["a", "b" * 64]}, "'query[1]' of the body has 65 tokens"),
        ("/get_reward", {"query": [""]}, "'query[0]' of the body is empty"),
        ("/get_reward", {"query": ["a"] * 9}, "'query' of the body holds 9 sequences, which can never fit"),
        ("/score", {"prompt": "a" * 64, "response": "b"}, "the conversation of 'prompt' and 'response' has 66 tokens"),
        ("/score", {"prompt": [], "response": "b"}, "'prompt' of the body is []; expected a list of chat messages"),
        ("/predict", {"inputs": [["a"], [""]]}, "'inputs[1]' of the body is empty"),
        ("/predict", {"inputs": [["a"], ["a", "b"]]}, "'inputs' of the body holds both texts and pairs"),
        ("/tokenize", {"prompt": ""}, "'prompt' of the body is empty"),
        ("/pooling", {"input": "a", "encoding_format": "base64"}, "is 'base64'; expected 'float'"),
        ("/tokenize", {"prompt": ["a"]}, "'prompt' of the body is ['a']; expected str"),
        ("/v2/repository/index", {"ready": "yes"}, "'ready' of the body is 'yes'; expected bool"),
    ],
)  # fmt: skip
def test_errors_name_the_field_the_value_and_the_expected_type(running, path, body, words):
    answer = running.http.post(path, json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


@pytest.mark.parametrize("content", [
    b'{"query": ["abc"], "labels": [NaN, 1e999], "more": {"fields": null}}',
    b'{"query": ["abc"], "labels": ["\\ud800"], "prompts": 5}',
    '{"query": ["abc"]}'.encode("utf-16"),
    b'\xef\xbb\xbf{"query": ["x"], "query": ["abc"]}',
])  # fmt: skip
def test_every_body_that_json_loads_reads_is_accepted(running, content):
    expected = running.http.post("/get_reward", json={"query": ["abc"]}).json()
    assert running.http.post("/get_reward", content=content).json() == expected


def test_several_models_by_name_and_path(running):
    with contextlib.ExitStack() as stack:
        both = start(stack, {"one": running.load, "two": running.load}, paths={"one": "a/path", "two": "b/path"})
        assert [model["name"] for model in both.http.post("/v2/repository/index").json()] == ["one", "two"]
        assert both.http.post("/v2/models/two/infer", json={"inputs": [sentences("a")]}).status_code == 200
        assert both.http.post("/classify", json={"model": "b/path", "input": "a"}).status_code == 200
        assert both.http.post("/classify", json={"model": "other", "input": "a"}).status_code == 404
        assert both.metric("requests_total", model="two") == 2


@pytest.mark.parametrize("data", [
    ["x" * 10_000, *["a"] * 1_000], [[1, 2], ["3", 4]], [10**30], [True], [None], [[[1]], 2], {},
])  # fmt: skip
def test_invalid_numbers_are_refused_before_memory_is_allocated(running, data):
    tokens = {"name": "tokens", "datatype": "INT64", "shape": [1, 1], "data": data}
    lengths = {"name": "sequence_lengths", "datatype": "INT64", "shape": [1, 1], "data": [1]}
    tracemalloc.start()
    assert infer(running, tokens, lengths).status_code == 400
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("shape", [[10**4000, 10**4000], [10**4000] * 100, [1] * 100, [1 << 31, 0]])
def test_huge_shapes_are_refused_quickly(running, shape):
    began = time.monotonic()
    answer = infer(running, sentences("a", shape=shape))
    assert (answer.status_code, time.monotonic() - began < 20) == (400, True)
    assert len(answer.content) < 1_000


def test_timeouts_may_be_huge(running):
    assert infer(running, sentences("a"), parameters={"timeout": 10**400}).status_code == 200


def test_null_fields_have_their_default(running):
    body = {"model": None, "input": "a", "truncate_prompt_tokens": None, "encoding_format": None}
    assert running.http.post("/classify", json=body).status_code == 200


def test_openrlhf_texts_are_stripped_of_padding_and_eos(running):
    score = lambda text: running.http.post("/get_reward", json={"query": [text]}).json()["rewards"]
    assert score("abc") == score("abc<eos><eos>") == score("<pad><pad>abc<eos>") == score("abc<eos><pad><pad>")


def test_the_tensor_add_eos_of_nemos_annotation_script(running):
    closing = lambda *values: {"name": "add_EOS", "datatype": "BOOL", "shape": [len(values), 1], "data": list(values)}
    found = infer(running, sentences("ab", "c"), closing(True, True)).json()["outputs"][0]["data"]
    np.testing.assert_allclose(found, rewards(running, ["ab", "c"], add_eos=True)[:, 0], atol=1e-5)
    assert "all equal" in infer(running, sentences("ab", "c"), closing(True, False)).json()["error"]


def test_vllm_texts_start_with_the_bos_token_of_the_tokenizer(fakes):
    running = fakes()
    running.registry.get("reward_model").reader._bos_prefix = "B"
    for body in ({"input": "a"}, {"input": "Bb"}, {"input": "c", "add_special_tokens": False}, {"input": [100, 101]}):
        assert running.http.post("/classify", json=body).status_code == 200
    assert running.fake.scored == [b"Ba", b"Bb", b"c", b"de"]


@pytest.mark.parametrize("path", ["/", "/docs", "/metrics", "/v2/health/live", "/v2", INFER, "/nowhere"])
def test_on_loopback_other_host_names_are_refused_on_every_path(running, path):
    answer = lambda host: running.http.get(path, headers={"host": host})
    found = answer("evil.example:8000")
    assert (found.status_code, found.headers["content-type"]) == (403, "application/json")
    assert found.json()["error"].startswith("the request is for the host 'evil.example', which this server does not")
    for host in ("localhost", "LOCALHOST.:8000", "127.0.0.1:1", "[::1]:80"):
        assert answer(host).status_code == running.http.get(path).status_code != 403
    body = {"inputs": [sentences("a")]}
    assert running.http.post(path, json=body, headers={"host": "evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("allowed", "given", "address", "known", "unknown"),
    [
        ((), "127.0.0.1", "127.0.0.1", "localhost", "10.0.0.1"),
        ((), "Node7", "127.0.1.1", "node7", "node8"),
        (("rm.example",), "127.0.0.1", "127.0.0.1", "RM.example:443", "example"),
        (("rm.example",), "0.0.0.0", "0.0.0.0", "rm.example", "10.0.0.1"),
    ],
)
def test_known_host_names(allowed, given, address, known, unknown):
    names = Security.read(allowed_hosts=allowed).known_hosts(given, address)
    check_host(known, names)
    with pytest.raises(Forbidden, match=f"the host '{unknown}', .*--allowed_hosts"):
        check_host(unknown, names)


def test_other_interfaces_answer_to_every_host_name_unless_some_are_given():
    assert Security().known_hosts("0.0.0.0", "0.0.0.0") is None
    with pytest.raises(InputError, match="--allowed_hosts has 'http://a'; expected the names of hosts, without scheme"):
        Security.read(allowed_hosts=["http://a"])


def test_the_ipv6_loopback_address_can_be_bound(tiny_scorer):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with contextlib.ExitStack() as stack:
        made = start(stack, {"reward_model": functools.partial(load_tiny, *tiny_scorer, DeviceMemory())}, host="::1")
        with httpx2.Client(base_url=f"http://[::1]:{made.http_port}", trust_env=False) as http:
            assert http.get("/v2/health/ready").status_code == 200
        with grpc.insecure_channel(f"[::1]:{made.grpc_port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=60).live
