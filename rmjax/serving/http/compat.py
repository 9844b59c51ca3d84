"""Endpoints of other reward and inference servers: functions from a request body to a response body.

Whole texts are tokenized as they are. Separate prompts and responses, and texts to which the original server appends
EOS, are formatted as in training.

Axis letters: B sequences of a request, A attributes.
"""

import dataclasses
import reprlib
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
from msgspec import UNSET, Struct

from rmjax.serving.engine.queue import check_sequence
from rmjax.serving.errors import InputName, Overloaded, RequestError, field_name
from rmjax.serving.http import schemas, sglang
from rmjax.serving.http.decoding import convert
from rmjax.serving.http.fields import join, probabilities, refuse_truncated, single_attribute, texts_or_tokens
from rmjax.serving.protocol import Call
from rmjax.serving.registry import ModelRegistry
from rmjax.serving.services.inputs import Conversation, check_messages
from rmjax.serving.services.reward import RewardService

_MAX_QUEUED = 4096  # texts queued for the tokenizer, above which /tokenize refuses requests


async def respond(
    endpoint: Callable[..., Any], schema: type[Struct], registry: ModelRegistry, found: dict[str, Any], call: Call
) -> Any:
    """Returns an endpoint's response to a JSON object; the model is the one it names, or the server's first.

    Raises:
      ServingError: the request failed.
    """
    if endpoint is classify and found.keys() & {"text", "input_ids"}:
        if found.keys() & {"input", "messages"}:
            raise RequestError(
                "the body has vLLM's field 'input' or 'messages' beside SGLang's 'text' or 'input_ids'; expected one"
            )
        endpoint, schema = sglang.encode, schemas.SglangBody
    name = found.get("model") if "model" in schema.__struct_fields__ else None
    name = name if isinstance(name, str) else registry.names[0]
    scoring = endpoint is not tokenize
    with registry.acquire(name, counted=scoring) as model:
        if scoring and not isinstance(model, RewardService):
            raise RequestError(
                f"model {name!r} is no reward model, and this endpoint returns rewards; name one in the field 'model', "
                f"or send tensors to /v2/models/{name}/infer"
            )
        return await endpoint(model, convert(found, schema), call)


async def get_reward(model: RewardService, body: schemas.GetRewardBody, call: Call) -> schemas.GetRewardResponse:
    """Scores texts, as OpenRLHF's remote reward model.

    A text is stripped of padding and EOS tokens at its ends, as in OpenRLHF's server, and closed by one EOS.
    """
    texts = [model.reader.without_pad_and_eos(text) for text in body.query]
    scored = await model.score(texts, field_name("query", is_list=True), dataclasses.replace(call, add_eos=True))
    rewards = single_attribute(model, scored)
    logs = {"truncated": scored.exceeded.astype(float).tolist()} if scored.exceeded.any() else {}
    return schemas.GetRewardResponse(rewards, rewards, logs)


async def score_evaluation(
    model: RewardService, body: schemas.ScoreEvaluationBody, call: Call
) -> schemas.ScoreEvaluationResponse:
    """Scores whole texts, as LLaMA-Factory's reward server; `max_length` cuts them at their end.

    The model is the server's first.
    """
    if body.max_length is not None:
        call = dataclasses.replace(call, truncate="right", limit=body.max_length)
    source = field_name("messages", is_list=True)
    scored = await model.score(body.messages, source, call)
    if body.max_length is None:
        refuse_truncated(model, source, scored)
    name, scores = f"scoreval-{uuid.uuid4().hex}", single_attribute(model, scored)
    return schemas.ScoreEvaluationResponse(name, "score.evaluation", model.metrics.model, scores)


async def score(model: RewardService, body: schemas.ScoreBody, call: Call) -> float:
    """Scores a prompt with its response, as slime's remote reward model.

    The response is a bare number, which cannot report truncation, so texts that are too long are always refused.
    """
    conversation = join(model, body.prompt, body.response)
    source = InputName("the conversation of 'prompt' and 'response'")
    scored = await model.score([conversation], source, dataclasses.replace(call, add_eos=True))
    refuse_truncated(model, source, scored)
    return single_attribute(model, scored)[0]


async def predict(
    model: RewardService, body: schemas.PredictBody, call: Call
) -> list[schemas.Prediction | list[schemas.Prediction]]:
    """Scores one or several texts, as Text Embeddings Inference; attributes are sorted by descending score."""
    inputs = body.inputs
    batch = isinstance(inputs, list) and bool(inputs) and all(isinstance(item, list) for item in inputs)
    conversations, pairs = zip(*(_text_or_pair(model, item) for item in (inputs if batch else [inputs])), strict=True)
    if len(set(pairs)) != 1:
        raise RequestError("'inputs' of the body holds both texts and pairs [prompt, response]; expected one kind")
    side = "right" if body.truncation_direction is None else body.truncation_direction.lower()
    if side not in ("left", "right"):
        raise RequestError(f"'truncation_direction' of the body is {side!r:.40}; expected 'left' or 'right'")
    call = dataclasses.replace(call, add_eos=pairs[0], truncate=side if body.truncate else "")
    scored = await model.score(conversations, field_name("inputs", is_list=batch), call)
    values = scored.rewards if body.raw_scores else probabilities(scored.rewards)
    predictions: list[Any] = []
    for row, cut in zip(values.tolist(), scored.exceeded.tolist(), strict=True):
        items = [
            schemas.Prediction(value, name, cut or UNSET) for value, name in zip(row, model.attributes, strict=True)
        ]
        predictions.append(sorted(items, key=lambda item: -item.score))
    return predictions if batch else predictions[0]


async def classify(model: RewardService, body: schemas.VllmBody, call: Call) -> schemas.VllmResponse:
    """Scores texts or chat messages, as vLLM's `/classify`: probabilities by default.

    A text starts with the BOS token if the tokenizer adds one, unless `add_special_tokens` is false. A body with `text`
    or `input_ids` is SGLang's, and answered as by `/encode`.
    """
    return await _vllm(model, body, call, "classify")


async def pooling(model: RewardService, body: schemas.VllmBody, call: Call) -> schemas.VllmResponse:
    """Scores texts or chat messages, as vLLM's `/pooling`: like `/classify`, but rewards by default."""
    return await _vllm(model, body, call, "pooling")


async def embeddings(model: RewardService, body: schemas.VllmBody, call: Call) -> schemas.VllmResponse:
    """Scores texts or chat messages, as SGLang's `/v1/embeddings`: like `/classify`, but rewards by default."""
    return await _vllm(model, body, call, "embedding")


async def tokenize(model: Any, body: schemas.TokenizeBody, call: Call) -> schemas.TokenizeResponse:
    """Tokenizes a text or chat messages, as vLLM's `/tokenize`: exactly the tokens with which v2 inference scores them.

    `token_strs` holds the text of each token alone, if `return_token_strs` is true.
    """
    if (reader := getattr(model, "reader", None)) is None:
        raise RequestError(f"model {model.metrics.model!r} has no text input; name a reward model in 'model'")
    source, text = _text_or_messages("prompt", body.prompt, body)
    if reader.queued >= _MAX_QUEUED:
        raise Overloaded(f"{reader.queued} texts are queued for the tokenizer, the maximum: retry later")
    (tokens,), (cut,) = await reader.tokenize([text], source, call)
    check_sequence(0, tokens, source, reader.max_length)
    strings = await reader.token_strings(tokens) if body.return_token_strs else None
    return schemas.TokenizeResponse(len(tokens), reader.max_length, tokens.tolist(), strings, bool(cut) or UNSET)


async def _vllm(model: RewardService, body: schemas.VllmBody, call: Call, kind: str) -> schemas.VllmResponse:
    activation = kind == "classify"
    for option in (body.use_activation, body.activation):
        activation = activation if option is None else option
    if body.encoding_format not in (None, "float"):
        raise RequestError(f"'encoding_format' of the body is {body.encoding_format!r:.40}; expected 'float'")
    if body.truncate_prompt_tokens:
        call = dataclasses.replace(call, truncate="left", limit=max(body.truncate_prompt_tokens, 0))
    source, found = _text_or_messages("input", body.input, body)
    conversations = [found]
    if body.messages is UNSET:
        source, conversations = texts_or_tokens(model, "input", found)
    if body.add_special_tokens is not False:
        conversations = [model.reader.with_bos(text) if isinstance(text, str) else text for text in conversations]
    scored = await model.score(conversations, source, call)
    values = probabilities(scored.rewards) if activation else scored.rewards
    items = []
    for i, (row, cut) in enumerate(zip(values.tolist(), scored.exceeded.tolist(), strict=True)):
        items.append(item := schemas.VllmItem(i, truncated=cut or UNSET))
        if kind == "classify":
            item.label, item.probs, item.num_classes = model.attributes[int(np.argmax(row))], row, len(row)
        else:
            item.object = kind
            setattr(item, "data" if kind == "pooling" else "embedding", row)
    count = sum(scored.lengths)
    usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0}
    name = body.model or model.metrics.model
    left_out = call.notes.get("left_out", UNSET)
    return schemas.VllmResponse(f"{kind}-{uuid.uuid4().hex}", "list", int(time.time()), name, items, usage, left_out)


def _text_or_messages(name: str, text: Any, body: schemas.VllmBody | schemas.TokenizeBody) -> tuple[InputName, Any]:
    """Returns the name and value of the one field that is set, of the field `name` and `messages`, with the tools."""
    if (text is UNSET) == (body.messages is UNSET):
        found = "neither" if text is UNSET else "both"
        raise RequestError(f"the body has {found} of the fields {name!r} and 'messages'; expected one")
    if body.messages is UNSET:
        if body.tools:
            raise RequestError(f"the body has 'tools' beside {name!r}, which no chat template renders; give 'messages'")
        return field_name(name), text
    source = field_name("messages")
    return source, check_messages(source.text, body.messages, body.tools)


def _text_or_pair(model: RewardService, item: Any) -> tuple[Conversation, bool]:
    """Returns a sequence of TEI's `inputs`, and whether it is a pair of prompt and response."""
    texts = [item] if isinstance(item, str) else item
    if len(texts) not in (1, 2) or not all(isinstance(text, str) for text in texts):
        expected = "expected a text, or a list of a prompt and a response"
        raise RequestError(f"'inputs' of the body has {reprlib.repr(item)}; {expected}")
    return (texts[0], False) if len(texts) == 1 else (join(model, *texts), True)
