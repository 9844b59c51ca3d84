"""The endpoints of the HTTP server and their OpenAPI document."""

import dataclasses
import inspect
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import rmjax
from rmjax.serving.http.schemas import Error

_PROMPT, _TEXT = "What is 2 + 2?", "What is 2 + 2? It is 4."
_VLLM = {"id": "1", "object": "list", "created": 1800000000, "model": "reward_model",
         "usage": {"prompt_tokens": 23, "total_tokens": 23, "completion_tokens": 0}}  # fmt: skip
_VLLM_BODY = {"model": "reward_model", "input": [_TEXT], "use_activation": False}
# Last part of the path: examples of the request and the response.
EXAMPLES = {
    "infer": (
        {"inputs": [{"name": "sentences", "shape": [1, 1], "datatype": "BYTES", "data": [_TEXT]}],
         "outputs": [{"name": "rewards"}], "parameters": {"add_eos": True}},
        {"model_name": "reward_model", "model_version": "1",
         "outputs": [{"name": "rewards", "datatype": "FP32", "shape": [1, 1], "data": [1.5]}]},
    ),
    "get_reward": ({"query": [_TEXT]}, {"rewards": [1.5], "scores": [1.5], "extra_logs": {}}),
    "score": ({"prompt": _PROMPT, "response": " It is 4."}, 1.5),
    "predict": ({"inputs": [[_PROMPT, " It is 4."]], "raw_scores": True}, [[{"score": 1.5, "label": "reward"}]]),
    "classify": (_VLLM_BODY, _VLLM | {"data": [{"index": 0, "label": "reward", "probs": [1.5], "num_classes": 1}]}),
    "pooling": (_VLLM_BODY, _VLLM | {"data": [{"index": 0, "object": "pooling", "data": [1.5]}]}),
    "embeddings": (_VLLM_BODY, _VLLM | {"data": [{"index": 0, "object": "embedding", "embedding": [1.5]}]}),
    "encode": ({"text": [_TEXT]}, [{"embedding": [1.5], "meta_info": {"id": "1", "prompt_tokens": 23}}]),
    "evaluation": ({"messages": [_TEXT]},
                   {"id": "1", "object": "score.evaluation", "model": "reward_model", "scores": [1.5]}),
    "": ({"inputs": [_TEXT], "parameters": {"function_to_apply": "none"}}, [[{"score": 1.5, "label": "reward"}]]),
    "tokenize": ({"prompt": "Hi"}, {"count": 1, "max_model_len": 4096, "tokens": [13048], "token_strs": None}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A method and path.

    Attributes:
      answer: returns the response to a request and its body; its docstring describes the endpoint.
      request, response: types of the JSON bodies; None if there is none.
      public: whether it needs no bearer token, since probes have none and the pages contain no secrets.
    """

    method: str
    path: str
    answer: Callable[[Request, bytes], Awaitable[Response]]
    request: Any = None
    response: Any = None
    public: bool = False


def openapi(endpoints: Sequence[Endpoint], token: bool) -> dict[str, Any]:
    """Returns the OpenAPI document; `token` tells whether the server requires a bearer token."""
    types = [kind for endpoint in endpoints for kind in (endpoint.request, endpoint.response) if kind] + [Error]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(types, schemas, strict=True))
    json_of = lambda kind, **example: {"content": {"application/json": {"schema": schema_of[kind]} | example}}
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        text = inspect.getdoc(endpoint.answer) or ""
        examples = [{"example": example} for example in EXAMPLES.get(endpoint.path.rpartition("/")[2], ())] or [{}, {}]
        success = json_of(endpoint.response, **examples[1]) if endpoint.response else {}
        responses = {"200": {"description": "success"} | success, "default": {"description": "error"} | json_of(Error)}
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = {
            "summary": text.splitlines()[0],
            "description": text,
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in re.findall(r"{(\w+)}", endpoint.path)
            ],
            "responses": responses,
            "security": [] if endpoint.public or not token else [{"token": []}],
        } | ({"requestBody": json_of(endpoint.request, **examples[0])} if endpoint.request else {})
    info = {"title": "rmjax", "version": rmjax.__version__}
    found = {"schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": found}
