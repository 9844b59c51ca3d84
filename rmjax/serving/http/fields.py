"""What the endpoints of other servers share: fields of their requests, and values of their responses.

Axis letters: B sequences of a request, A attributes.
"""

import reprlib
from typing import Any

import numpy as np

from rmjax.data.records.conversations import join_strings
from rmjax.serving.errors import InputName, RequestError, field_name
from rmjax.serving.services.inputs import Conversation, check_messages
from rmjax.serving.services.reward import RewardService, ScoreResult


def texts_or_tokens(model: RewardService, name: str, found: str | list[Any]) -> tuple[InputName, list[Conversation]]:
    """Returns the name and the sequences of the field `name`: a text, a list of tokens, or a list of either."""
    single = isinstance(found, str) or (bool(found) and all(isinstance(item, int) for item in found))
    source, items = field_name(name, is_list=not single), [found] if single else found
    if items and all(isinstance(item, str) for item in items):
        return source, list(items)
    if not items or not all(isinstance(item, list) and item for item in items):
        expected = "expected a text, a list of tokens, or a list of either"
        raise RequestError(f"{source.text} is {reprlib.repr(found)}; {expected}")
    try:
        sequences = [np.array(item, np.int64) for item in items]
    except OverflowError as error:
        raise RequestError(f"{source.text} has a token that is not a 64-bit integer") from error
    return source, [model.reader.check_tokens(source.row(row), tokens) for row, tokens in enumerate(sequences)]


def join(model: RewardService, prompt: str | list[dict[str, Any]], response: str) -> Conversation:
    """Returns prompt and response as a conversation in the format of training."""
    if isinstance(prompt, list):
        return [*check_messages("'prompt' of the body", prompt), {"role": "assistant", "content": response}]
    return join_strings(prompt, response, chat=model.prompt_format == "chat")


def single_attribute(model: RewardService, scored: ScoreResult) -> list[float]:
    """Returns one reward per sequence; raises RequestError if the model has several attributes."""
    if len(model.attributes) != 1:
        raise RequestError(
            f"the model has the attributes {', '.join(model.attributes)}, and this endpoint returns one number per "
            f"text; use {_infer_path(model)}"
        )
    return scored.rewards[:, 0].tolist()


def refuse_truncated(model: RewardService, source: InputName, scored: ScoreResult) -> None:
    """Raises RequestError if a sequence was truncated, for endpoints whose response cannot say so."""
    if scored.exceeded.any():
        raise RequestError(
            f"{source.row(int(np.argmax(scored.exceeded)))} has more than {model.reader.max_length} tokens, the "
            f"model's maximum, and this endpoint cannot report truncation; shorten it, or use {_infer_path(model)}"
        )


def _infer_path(model: RewardService) -> str:
    """Returns the path of the endpoint of the Open Inference Protocol v2."""
    return f"/v2/models/{model.metrics.model}/infer"


def probabilities(rewards: np.ndarray) -> np.ndarray:
    """Returns probabilities [B, A] as transformers' classifiers: sigmoid of one logit, softmax of several."""
    return sigmoid(rewards) if rewards.shape[1] == 1 else softmax(rewards)


def sigmoid(rewards: np.ndarray) -> np.ndarray:
    """Returns the logistic function of rewards."""
    return 0.5 * (1 + np.tanh(0.5 * rewards))


def softmax(rewards: np.ndarray) -> np.ndarray:
    """Returns the softmax of rewards [B, A] over the attributes."""
    powers = np.exp(rewards - rewards.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
