"""The OpenAPI document: schemas, examples, and their agreement with the endpoints."""

import contextlib
import json
import re
import typing

import msgspec
import pytest

from rmjax.serving.http import compat, schemas, sglang
from rmjax.serving.http.openapi import EXAMPLES
from rmjax.serving.http.text_classification import text_classification
from rmjax.serving.security import Security
from tests.serving.conftest import start

PATHS = {
    "/v2/models/reward_model/infer": schemas.InferResponse,
    "/get_reward": compat.get_reward,
    "/classify": compat.classify,
    "/pooling": compat.pooling,
    "/v1/embeddings": compat.embeddings,
    "/predict": compat.predict,
    "/score": compat.score,
    "/v1/classify": compat.classify,
    "/encode": sglang.encode,
    "/v1/score/evaluation": compat.score_evaluation,
    "/": text_classification,
    "/tokenize": compat.tokenize,
}


def response_type(path):
    found = PATHS[path]
    return found if isinstance(found, type) else typing.get_type_hints(found)["return"]


@pytest.fixture(scope="module")
def document(running):
    return running.http.get("/openapi.json").json()


def resolve(document, schema):
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].removeprefix("#/components/schemas/")]
    return schema


def body_of(document, path, method="post", *, response=False):
    """Returns the JSON media type (schema, example) of a request or response."""
    operation = document["paths"][path][method]
    found = operation["responses"]["200"] if response else operation["requestBody"]
    return found["content"]["application/json"]


def test_every_endpoint_is_described_and_every_reference_exists(document):
    assert document["openapi"] == "3.1.0"
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"], path
            assert operation["description"], path
            assert {parameter["name"] for parameter in operation["parameters"]} == set(re.findall(r"{(\w+)}", path))
    references = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))
    assert set(references) == set(document["components"]["schemas"])


def test_request_schemas_name_fields_types_and_defaults(document):
    found = resolve(document, body_of(document, "/get_reward")["schema"])
    assert found["required"] == ["query"]
    assert found["properties"]["query"]["items"] == {"type": "string"}
    assert found["properties"]["query"]["description"]
    found = resolve(document, body_of(document, "/classify")["schema"])["properties"]
    assert {"model", "input", "messages", "use_activation", "truncate_prompt_tokens"} <= set(found)
    found = resolve(document, body_of(document, "/v2/models/{model}/infer")["schema"])
    tensor = resolve(document, found["properties"]["inputs"]["items"])
    assert tensor["required"] == ["name", "shape", "datatype"]


def test_the_v2_parameters_are_listed(document):
    infer = document["paths"]["/v2/models/{model}/infer"]["post"]
    found = resolve(document, infer["requestBody"]["content"]["application/json"]["schema"])["properties"]["parameters"]
    assert set(found["properties"]) == {"truncate", "close", "add_eos", "timeout"}
    assert "add_eos" in infer["description"]  # which /docs shows


@pytest.mark.parametrize("path", PATHS)
def test_examples_are_valid_and_complete(running, document, path):
    described = path.replace("reward_model", "{model}")
    request, response = (body_of(document, described, response=response)["example"] for response in (False, True))
    answer = running.http.post(path, json=request)
    assert answer.status_code == 200, answer.text
    found = msgspec.json.decode(answer.content, type=response_type(path))  # the response conforms to its schema
    example = msgspec.convert(response, response_type(path))
    assert shape_of(msgspec.to_builtins(found)) == shape_of(msgspec.to_builtins(example))


def shape_of(value):
    """Returns a JSON value with types in the place of values; lists are represented by their first element."""
    if isinstance(value, dict):
        return {key: shape_of(entry) for key, entry in value.items()}
    return [shape_of(entry) for entry in value[:1]] if isinstance(value, list) else type(value)


def test_all_examples_belong_to_an_endpoint(document):
    assert set(EXAMPLES) == {path.rpartition("/")[2] for path in PATHS}
    for path in document["paths"]:
        if path.rpartition("/")[2] in EXAMPLES:
            assert body_of(document, path)["example"]


def test_endpoints_that_require_the_token(running):
    with contextlib.ExitStack() as stack:
        made = start(stack, {"reward_model": running.load}, security=Security(token="0123456789abcdef"), warm=False)
        paths = made.http.get("/openapi.json").json()["paths"]
    assert paths["/get_reward"]["post"]["security"] == [{"token": []}]
    assert paths["/docs"]["get"]["security"] == []
