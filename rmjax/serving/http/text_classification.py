"""Hugging Face's text-classification endpoints (Inference API, Inference Endpoints)."""

import dataclasses

import numpy as np

from rmjax.serving.errors import RequestError, field_name
from rmjax.serving.http import schemas
from rmjax.serving.http.fields import join, probabilities, sigmoid, softmax
from rmjax.serving.protocol import Call
from rmjax.serving.services.inputs import Conversation
from rmjax.serving.services.reward import RewardService


async def text_classification(
    model: RewardService, body: schemas.PipelineBody, call: Call
) -> list[list[schemas.Prediction]]:
    """Scores texts or pairs, as `huggingface_hub.InferenceClient.text_classification`: one list per text.

    A text starts with the BOS token if the tokenizer adds one; a pair is joined as prompt and response in training.
    """
    options = body.parameters or schemas.PipelineParameters()
    items = body.inputs if isinstance(body.inputs, list) else [body.inputs]
    source = field_name("inputs", is_list=isinstance(body.inputs, list))
    if not items:
        raise RequestError(f"{source.text} is []; expected at least one text")
    pairs = [isinstance(item, schemas.TextPair) and item.text_pair is not None for item in items]
    if len(set(pairs)) != 1:
        raise RequestError(f"{source.text} holds both texts and pairs; expected one kind")
    call = dataclasses.replace(call, add_eos=pairs[0], truncate="right" if options.truncation else "")
    scored = await model.score([_conversation(model, item) for item in items], source, call)
    values = _activate(scored.rewards, options.function_to_apply)
    predictions = []
    for row, cut in zip(values.tolist(), scored.exceeded.tolist(), strict=True):
        named = zip(row, model.attributes, strict=True)
        found = [schemas.Prediction(value, name, *([True] if cut else [])) for value, name in named]
        predictions.append(sorted(found, key=lambda item: -item.score)[: options.top_k])
    return predictions


def _conversation(model: RewardService, item: str | schemas.TextPair) -> Conversation:
    if isinstance(item, schemas.TextPair) and item.text_pair is not None:
        return join(model, item.text, item.text_pair)
    return model.reader.with_bos(item if isinstance(item, str) else item.text)


def _activate(rewards: np.ndarray, function: str | None) -> np.ndarray:
    """Returns the values [B, A] of rewards [B, A] under transformers' `function_to_apply`."""
    if function == "none":
        return rewards
    if function == "sigmoid":
        return sigmoid(rewards)
    if function == "softmax":
        return softmax(rewards)
    if function is None:
        return probabilities(rewards)
    raise RequestError(
        f"'parameters.function_to_apply' of the body is {function!r:.40}; expected 'none', 'sigmoid' or 'softmax'"
    )
