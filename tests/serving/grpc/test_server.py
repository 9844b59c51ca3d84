"""The gRPC server: inference, metadata, health, streams, and invalid requests."""

import asyncio
import contextlib
import json

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from rmjax.core.errors import InputError
from rmjax.data.tokens.trees import make_tree
from rmjax.serving.grpc.server import GrpcServer
from tests.serving.conftest import start

CODE = grpc.StatusCode


@pytest.fixture(scope="module", autouse=True)
def clients(running):
    running.stub = service_pb2_grpc.GRPCInferenceServiceStub(running.channel)
    running.client = triton.InferenceServerClient(f"127.0.0.1:{running.grpc_port}")


def score(running, tensors, model="reward_model", **options):
    kinds = {np.dtype("int64"): "INT64", np.dtype("float32"): "FP32", np.dtype("int32"): "INT32"}
    inputs = []
    for name, values in tensors.items():
        inputs.append(triton.InferInput(name, values.shape, kinds.get(values.dtype, "BYTES")))
        inputs[-1].set_data_from_numpy(values)
    return running.client.infer(model, inputs, **options).as_numpy("rewards")


def column(*values):
    return np.array([[v if isinstance(v, bytes) else v.encode()] for v in values], np.object_)


def expected(running, sequences):
    return np.concatenate([running.scorer.score([make_tree([s])])[0] for s in sequences])


def test_sentences_are_tokenized_as_they_are(running):
    texts = ["a", "Is it? Yes.", "Grüße " * 4]
    found = score(running, {"sentences": column(*texts)}, outputs=[triton.InferRequestedOutput("rewards")])
    assert found.shape == (3, 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(running, running.tokenizer.encode(texts, False)), atol=1e-5)
    assert np.ptp(found) > 0.01


def test_padded_tokens_give_the_rewards_of_sentences(running):
    texts = ["a longer one", "short"]
    encoded = running.tokenizer.encode(texts, False)
    lengths = np.array([[len(s)] for s in encoded])
    for fill, width in ((0, 12), (-1, 20), (9, 40)):
        tokens = np.full((2, width), fill, np.int64)
        for row, sequence in zip(tokens, encoded, strict=True):
            row[: len(sequence)] = sequence
        found = score(running, {"tokens": tokens, "sequence_lengths": lengths})
        np.testing.assert_allclose(found, score(running, {"sentences": column(*texts)}), atol=1e-5)


def test_messages_are_rendered_with_the_template(running):
    messages = [{"role": "user", "content": "hé"}, {"role": "assistant", "content": "yo"}]
    text = running.tokenizer.render(messages)
    found = score(running, {"messages": column(json.dumps(messages))})
    np.testing.assert_allclose(found, score(running, {"sentences": column(text)}), atol=1e-5)


def test_typed_contents(running):
    tokens = [5, 6, 7, 0]
    request = service_pb2.ModelInferRequest(model_name="reward_model", id="mine")
    request.inputs.add(name="tokens", datatype="INT64", shape=[1, 4]).contents.int64_contents.extend(tokens)
    request.inputs.add(name="sequence_lengths", datatype="INT64", shape=[1, 1]).contents.int64_contents.append(3)
    response = running.stub.ModelInfer(request)
    assert response.id == "mine"
    found = np.frombuffer(response.raw_output_contents[0], np.float32)
    np.testing.assert_allclose(found, expected(running, [[5, 6, 7]])[0], atol=1e-5)
    request = service_pb2.ModelInferRequest(model_name="reward_model")
    request.inputs.add(name="sentences", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(b"abc")
    assert running.stub.ModelInfer(request).outputs[0].shape == [1, 1]


def test_concurrent_clients_get_their_own_rewards(running):
    texts = [chr(97 + i) * (i + 1) for i in range(16)]
    alone = [score(running, {"sentences": column(text)})[0, 0] for text in texts]
    futures = []
    for text in texts:
        request = service_pb2.ModelInferRequest(model_name="reward_model")
        tensor = request.inputs.add(name="sentences", datatype="BYTES", shape=[1, 1])
        tensor.contents.bytes_contents.append(text.encode())
        futures.append((request, running.stub.ModelInfer.future(request)))
    for (request, future), reward in zip(futures, alone, strict=True):
        while future.exception() is not None and future.code() == CODE.RESOURCE_EXHAUSTED:  # the queue holds 8
            future = running.stub.ModelInfer.future(request)
        np.testing.assert_allclose(np.frombuffer(future.result().raw_output_contents[0], np.float32), reward, atol=1e-5)


INT = lambda *rows: np.array(rows, np.int64)
BAD = [
    ({"sentences": column("")}, r"'sentences', row 0 is empty; expected a text of at least one token"),
    ({"sentences": column("a", "b" * 70)}, r"'sentences', row 1 has 70 tokens; expected at most 64"),
    ({"sentences": column("a").ravel()}, r"'sentences' has shape \[1\]; expected \[B, 1\]"),
    ({"sentences": np.array([[b"a", b"b"]], np.object_)}, r"'sentences' has shape \[1, 2\]"),
    ({"sentences": column(b"\xff")}, r"'sentences', row 0 is not UTF-8"),
    ({"sentences": INT([1])}, r"'sentences' has datatype 'INT64'; expected BYTES"),
    ({"sentences": column(*"abcdefghi")}, r"'sentences' holds 9 sequences, which can never fit"),
    ({"words": column("a")}, r"unknown tensor 'words'"),
    ({"tokens": INT([1, 2])}, r"\['tokens'\]; give"),
    ({"sentences": column("a"), "messages": column("a")}, r"\['messages', 'sentences'\]; give"),
    (
        {"tokens": INT([1, 2]), "sequence_lengths": INT([3])},
        r"'sequence_lengths', row 0 is 3; expected 1 to 2, the width of 'tokens'",
    ),
    ({"tokens": INT([1, 2]), "sequence_lengths": INT([0])}, r"'sequence_lengths', row 0 is 0"),
    (
        {"tokens": INT([1, 2]), "sequence_lengths": INT([1], [1])},
        r"'tokens' has shape \[1, 2\]; expected \[B, S\] with B = 2",
    ),
    (
        {"tokens": INT([1, 9999]), "sequence_lengths": INT([2])},
        r"'tokens', row 0 holds the token 9999; expected 0 to \d+, the model's vocabulary",
    ),
    ({"tokens": np.ones((1, 2), np.float32), "sequence_lengths": INT([2])}, r"'tokens' has datatype 'FP32'"),
    ({"tokens": np.ones((1, 65), np.int64), "sequence_lengths": INT([65])}, r"'tokens', row 0 has 65 tokens"),
    ({"messages": column('[{"role": "user", "content": "a", "role": "user"}]')}, "row 0: the key 'role' is twice"),
    ({"messages": column("{")}, r"'messages', row 0 is '{', which is not JSON .*; expected a list of chat messages"),
    ({"messages": column("[]")}, r"'messages', row 0 is \[\]; expected a list of chat messages: \[{\"role\": \"user\""),
    (
        {"messages": column('[{"role": "user"}]')},
        r"tensor 'messages', row 0: message\[0\].content is None; expected a string; a message is like {\"role\": ",
    ),
    ({"messages": column('["a"]')}, r"tensor 'messages', row 0: message\[0\] is 'a'; expected an object with role"),
]


@pytest.mark.parametrize(("tensors", "words"), BAD, ids=range(len(BAD)))
def test_invalid_tensors_are_named(running, tensors, words):
    with pytest.raises(triton.InferenceServerException, match=words) as raised:
        score(running, tensors)
    assert "INVALID_ARGUMENT" in raised.value.status()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.inputs[0].shape.extend([2]), "1 elements|2 elements"),
        (lambda r: r.raw_input_contents.append(b"\1\0\0\0a"), "1 inputs .* but 2 raw_input_contents"),
        (lambda r: r.raw_input_contents.__setitem__(0, b"\5\0\0\0a"), "end within element 0"),
        (lambda r: r.raw_input_contents.__setitem__(0, b"\5\0"), "end within element 0"),
        (lambda r: r.inputs[0].shape.__setitem__(0, -1), "not negative"),
        (lambda r: r.outputs.add(name="values"), "unknown output tensor 'values'"),
        (lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(b"\1\0\0\0a")), "given twice"),
    ],
    ids=range(7),
)
def test_malformed_messages_are_invalid_arguments(running, change, words):
    request = service_pb2.ModelInferRequest(model_name="reward_model", raw_input_contents=[b"\1\0\0\0a"])
    request.inputs.add(name="sentences", datatype="BYTES", shape=[1, 1])
    change(request)
    with pytest.raises(grpc.RpcError, match=words) as raised:
        running.stub.ModelInfer(request)
    assert raised.value.code() == CODE.INVALID_ARGUMENT


def test_unknown_models_and_versions_are_not_found(running):
    for options in ({"model": "critic_infer"}, {"model_version": "2"}):
        with pytest.raises(triton.InferenceServerException, match=r"critic_infer|version") as raised:
            score(running, {"sentences": column("a")}, **options)
        assert "NOT_FOUND" in raised.value.status()
    with pytest.raises(triton.InferenceServerException, match="unknown model"):
        running.client.is_model_ready("nothing")


def test_health_metadata_and_reflection(running):
    assert running.client.is_server_live()
    assert running.client.is_server_ready()
    assert running.client.is_model_ready("reward_model")
    assert running.client.get_server_metadata().name == "rmjax"
    metadata = running.client.get_model_metadata("reward_model")
    assert {t.name: (t.datatype, list(t.shape)) for t in metadata.inputs} == {
        "sentences": ("BYTES", [-1, 1]),
        "messages": ("BYTES", [-1, 1]),
        "tokens": ("INT64", [-1, -1]),
        "sequence_lengths": ("INT64", [-1, 1]),
        "add_EOS": ("BOOL", [-1, 1]),
    }
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.outputs] == [
        ("rewards", "FP32", [-1, 1]),
        ("exceeded", "INT32", [-1, 1]),
    ]
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    answer = next(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
    names = {service.name for service in answer.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names


def test_configuration_and_index(running):
    config = running.client.get_model_config("reward_model").config
    assert config.max_batch_size == 8
    found = [(t.name, t.data_type, list(t.dims)) for t in config.output]
    assert found == [("rewards", 11, [1]), ("exceeded", 8, [1])]  # TYPE_FP32, TYPE_INT32
    (model,) = running.client.get_model_repository_index().models
    assert (model.name, model.state) == ("reward_model", "READY")


def infer_request(text, **options):
    request = service_pb2.ModelInferRequest(model_name="reward_model", **options)
    request.inputs.add(name="sentences", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(text)
    return request


def test_a_stream_answers_in_order_and_continues_after_errors(running):
    texts = [b"one", b"", b"three"]
    requests = [infer_request(text, id=str(i)) for i, text in enumerate(texts)]
    answers = list(running.stub.ModelStreamInfer(iter(requests)))
    assert [answer.infer_response.id for answer in answers] == ["0", "1", "2"]
    assert "row 0 is empty" in answers[1].error_message
    for i in (0, 2):
        found = np.frombuffer(answers[i].infer_response.raw_output_contents[0], np.float32)
        alone = score(running, {"sentences": column(texts[i])})
        np.testing.assert_allclose(found, alone[0], atol=1e-5)


@pytest.mark.parametrize("method", ["ModelInfer", "ModelConfig", "ModelMetadata", "ServerLive"])
def test_unparsable_messages_are_invalid_arguments(running, method):
    call = running.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    with pytest.raises(grpc.RpcError, match="cannot be parsed as the request of this method") as raised:
        call(b"\xff\xff no protobuf message")
    assert raised.value.code() == CODE.INVALID_ARGUMENT
    stream = running.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
    (answer,) = stream(iter([b"\xff no protobuf message"]))
    answer = service_pb2.ModelStreamInferResponse.FromString(answer)
    assert "cannot be parsed as a ModelInferRequest" in answer.error_message


def test_other_methods_are_unimplemented(running):
    with pytest.raises(grpc.RpcError) as raised:
        running.stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name="reward_model"))
    assert raised.value.code() == CODE.UNIMPLEMENTED


def test_truncation_on_request(running):
    request = infer_request(b"c" * 70)
    request.parameters["truncate"].bool_param = True
    response = running.stub.ModelInfer(request)
    assert [output.name for output in response.outputs] == ["rewards", "exceeded"]
    assert np.frombuffer(response.raw_output_contents[1], np.int32).tolist() == [1]
    request.parameters["truncate"].int64_param = 1
    with pytest.raises(grpc.RpcError, match="'truncate' is 1; expected bool"):
        running.stub.ModelInfer(request)


def test_health_is_serving_after_warm_up(running):
    with contextlib.ExitStack() as stack:
        cold = start(stack, {"reward_model": running.load}, warm=False)
        client = triton.InferenceServerClient(f"127.0.0.1:{cold.grpc_port}")
        stub, status = health_pb2_grpc.HealthStub(cold.channel), health_pb2.HealthCheckResponse
        for service in ("", "inference.GRPCInferenceService"):
            assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == status.NOT_SERVING
        assert client.is_server_live()
        assert not client.is_server_ready()
        cold.client = client
        with pytest.raises(triton.InferenceServerException, match="warming up") as raised:
            score(cold, {"sentences": column("a")})
        assert "UNAVAILABLE" in raised.value.status()
        cold.call(cold.server.warm_up())
        assert stub.Check(health_pb2.HealthCheckRequest()).status == status.SERVING
        assert running.scorer.compiled == set(running.scorer.row_lengths)
        assert score(cold, {"sentences": column("a")}).shape == (1, 1)


def test_a_port_in_use_is_reported(running):
    async def take():
        GrpcServer(None, "127.0.0.1", running.grpc_port)

    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{running.grpc_port}"):
        asyncio.run(take())
