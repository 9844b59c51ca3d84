"""The HTTP forms that RL frameworks speak, each as a function from a JSON body to a JSON answer.

A text that comes whole is tokenised as it is; where prompt and response come apart, or the framework's own server
closes texts with the EOS, they become a conversation as in training.

Axis letters: B sequences of a request, A attributes.
"""

import contextlib
import dataclasses
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rmjax.data.records.conversations import join
from rmjax.data.schema import Message
from rmjax.serving.engine.queue import check_sequence
from rmjax.serving.errors import Overloaded, RequestError
from rmjax.serving.http.tensors import field
from rmjax.serving.protocol import Call
from rmjax.serving.registry import ModelRegistry
from rmjax.serving.services.inputs import Conversation, check_messages
from rmjax.serving.services.reward import RewardService, Scored

_WAITING = 4096  # texts at the tokenizer, beyond which no more are only tokenised

Body = dict[str, Any]


async def get_reward(registry: ModelRegistry, body: Body, call: Call) -> Body:
    """OpenRLHF's remote reward model: `{"query", "prompts", "labels"}` to `{"rewards", "scores", "extra_logs"}`.

    A query is prompt and response as one text. It is closed by the EOS unless it ends with it, as OpenRLHF's server
    does, and what stands around it of padding and EOS is taken off, as there. Where the server cuts overlong texts,
    `extra_logs` has `truncated`, 1 for those.
    """
    with _rewarding(registry, registry.names[0]) as service:
        texts = [service.reader.stripped(text) for text in _strings(field(body, "query", list), "query")]
        scored = await service.score(texts, "query", _with(call, add_eos=True))
        rewards = _single(service, scored)
    logs = {"truncated": scored.exceeded.astype(float).tolist()} if scored.exceeded.any() else {}
    return {"rewards": rewards, "scores": rewards, "extra_logs": logs}


async def score(registry: ModelRegistry, body: Body, call: Call) -> float:
    """slime's remote reward model: `{"prompt", "response", "label"}` to a bare number.

    The prompt is a string or a list of chat messages. There is no room to say that a text was cut, so none is.
    """
    with _rewarding(registry, registry.names[0]) as service:
        prompt, response = body.get("prompt"), field(body, "response", str)
        conversation = _joined(service, prompt, response)
        scored = await service.score([conversation], "prompt", _with(call, add_eos=True))
        if scored.exceeded[0]:
            raise RequestError(
                f"'prompt' and 'response' have more than {service.reader.max_length} tokens, and this "
                "form has no room to say that they were cut; use /v2/models/M/infer"
            )
        return _single(service, scored)[0]


async def predict(registry: ModelRegistry, body: Body, call: Call) -> list:
    """Text Embeddings Inference: `{"inputs", "raw_scores", "truncate"}` to `[{"score", "label"}]`, best first.

    `inputs` is a string, a pair [prompt, response], or a list of such lists.
    """
    with _rewarding(registry, registry.names[0]) as service:
        inputs, raw = body.get("inputs"), field(body, "raw_scores", bool, False)
        batch = isinstance(inputs, list) and inputs and all(isinstance(item, list) for item in inputs)
        items = [_pair(service, item) for item in (inputs if batch else [inputs])]
        side = field(body, "truncation_direction", str, "right").lower()
        if side not in ("left", "right"):
            raise RequestError(f"'truncation_direction' is {side!r:.40}; expected 'left' or 'right'")
        call = _with(call, truncate=side if field(body, "truncate", bool, False) else "")
        scored = await _by_closing(service, items, "inputs", call)
        found = [
            sorted(
                (
                    {"score": float(value), "label": label} | ({"truncated": True} if cut else {})
                    for value, label in zip(values, service.attributes, strict=True)
                ),
                key=lambda one: -one["score"],
            )
            for values, cut in zip(_activated(scored.rewards, not raw), scored.exceeded, strict=True)
        ]
    return found if batch else found[0]


async def classify(registry: ModelRegistry, body: Body, call: Call) -> Body:
    """vLLM's `/classify`: `{"model", "input" or "messages", "use_activation"}` to `data[{"label", "probs"}]`.

    A text begins with the BOS where the tokenizer adds one by itself, unless `add_special_tokens` is false.
    """
    return await _vllm(registry, body, call, activation=True, kind="classify")


async def pooling(registry: ModelRegistry, body: Body, call: Call) -> Body:
    """vLLM's `/pooling`: as `/classify`, to `data[{"index", "object", "data"}]`; without an activation by default."""
    return await _vllm(registry, body, call, activation=False, kind="pooling")


async def embeddings(registry: ModelRegistry, body: Body, call: Call) -> Body:
    """The form in which verl asks SGLang: as `/classify`, to `data[{"index", "object", "embedding"}]`."""
    return await _vllm(registry, body, call, activation=False, kind="embedding")


async def tokenize(registry: ModelRegistry, body: Body, call: Call) -> Body:
    """vLLM's `/tokenize`: `{"model", "prompt"}`, or `"messages"`, to `{"count", "max_model_len", "tokens"}`.

    The tokens are those that `sentences` or `messages` are scored with: nothing is added to a text. With
    `return_token_strs` the answer has `token_strs`, what each token alone stands for. `"truncated": true` where the
    server cuts overlong texts and has cut this one.
    """
    name = field(body, "model", str, registry.names[0])
    with registry.use(name, counted=False) as service:
        if (reader := getattr(service, "reader", None)) is None:
            raise RequestError(f"model {name!r} reads no texts")
        source, messages = _messages_or(body, "prompt")
        text = messages or field(body, source, str)
        if reader.waiting >= _WAITING:
            raise Overloaded(f"{reader.waiting} texts wait for the tokenizer; try again later")
        (tokens,), (cut,) = await reader.sequences([text], source, call)
        check_sequence(0, tokens, source, reader.max_length)
        words = await reader.words(tokens) if field(body, "return_token_strs", bool, False) else None
    found = {"count": len(tokens), "max_model_len": reader.max_length, "tokens": tokens.tolist(), "token_strs": words}
    return found | ({"truncated": True} if cut else {})


async def _vllm(registry: ModelRegistry, body: Body, call: Call, *, activation: bool, kind: str) -> Body:
    name = field(body, "model", str, registry.names[0])
    with _rewarding(registry, name) as service:
        for option in ("use_activation", "activation"):  # the second was vLLM's name once
            if body.get(option) is not None:
                activation = field(body, option, bool)
        if (encoding := field(body, "encoding_format", str, "float")) != "float":
            raise RequestError(f"'encoding_format' is {encoding!r:.40}; expected 'float'")
        if (limit := field(body, "truncate_prompt_tokens", int, 0)) < -1:
            raise RequestError(
                f"'truncate_prompt_tokens' is {limit}; expected a number of tokens, or -1 for the model's"
            )
        if limit:
            call = _with(call, truncate="left", limit=max(limit, 0))
        source, messages = _messages_or(body, "input")
        items = [messages] if messages else _vllm_input(service, body["input"])
        if field(body, "add_special_tokens", bool, True):
            items = [service.reader.opened(item) if isinstance(item, str) else item for item in items]
        scored = await service.score(items, source, call)
        data = [
            _vllm_item(kind, i, values.tolist(), service.attributes) | ({"truncated": True} if cut else {})
            for i, (values, cut) in enumerate(zip(_activated(scored.rewards, activation), scored.exceeded, strict=True))
        ]
    usage = {"prompt_tokens": sum(scored.lengths), "total_tokens": sum(scored.lengths), "completion_tokens": 0}
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": name,
        "data": data,
        "usage": usage,
    }


def _messages_or(body: Body, other: str) -> tuple[str, list[Message] | None]:
    """Returns the name of the one field of `messages` and `other` that the body has, and the messages if it is those.

    Raises:
      RequestError: it has both or none, or they are no messages.
    """
    if (other in body) == ("messages" in body):
        raise RequestError(f"the body has both or none of {other!r} and 'messages'; expected one")
    if other in body:
        return other, None
    return "messages", check_messages("messages", 0, body["messages"])


def _vllm_item(kind: str, index: int, values: list[float], attributes: Sequence[str]) -> Body:
    if kind == "classify":
        label = attributes[int(np.argmax(values))]
        return {"index": index, "label": label, "probs": values, "num_classes": len(values)}
    return {"index": index, "object": kind, {"pooling": "data"}.get(kind, kind): values}


def _vllm_input(service: RewardService, found: Any) -> list[Conversation]:
    """Returns the sequences of `input`: a string, tokens, or a list of either."""
    integers = lambda value: isinstance(value, list) and value and all(type(token) is int for token in value)
    items = [found] if isinstance(found, str) or integers(found) else found
    if not isinstance(items, list) or not items:
        raise RequestError(f"'input' is {found!s:.60}; expected a string, a list of tokens, or a list of either")
    if all(integers(item) for item in items):
        try:
            return [
                service.reader.check_tokens("input", row, np.array(item, np.int64)) for row, item in enumerate(items)
            ]
        except OverflowError as error:
            raise RequestError("'input' holds a token that is no 64-bit integer") from error
    return _strings(items, "input")


def _pair(service: RewardService, item: Any) -> tuple[Conversation, bool]:
    """Returns a sequence of `inputs` and whether it is prompt and response, to be closed."""
    texts = [item] if isinstance(item, str) else item
    if not isinstance(texts, list) or len(texts) not in (1, 2) or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"'inputs' hold {item!s:.60}; expected a string, or a list of a prompt and a response")
    return (texts[0], False) if len(texts) == 1 else (_joined(service, *texts), True)


async def _by_closing(
    service: RewardService, items: Sequence[tuple[Conversation, bool]], source: str, call: Call
) -> Scored:
    """Scores a batch of which some are to be closed."""
    if len(kinds := {add_eos for _, add_eos in items}) != 1:
        raise RequestError(f"{source!r} holds both texts and pairs; expected one kind")
    return await service.score([conversation for conversation, _ in items], source, _with(call, add_eos=kinds.pop()))


def _joined(service: RewardService, prompt: Any, response: str) -> Conversation:
    """Returns prompt and response as a conversation as in training."""
    if isinstance(prompt, list):
        return [*check_messages("prompt", 0, prompt), {"role": "assistant", "content": response}]
    if not isinstance(prompt, str):
        raise RequestError(f"'prompt' is {prompt!s:.60}; expected a string or a list of chat messages")
    return join(prompt, response, chat=service.strings == "chat")


def _strings(found: Any, name: str) -> list[Conversation]:
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise RequestError(f"{name!r} is {found!s:.60}; expected a list of strings")
    return found


def _single(service: RewardService, scored: Scored) -> list[float]:
    """Returns one number a sequence.

    Raises:
      RequestError: the model has several.
    """
    if len(service.attributes) != 1:
        raise RequestError(
            f"the model gives {', '.join(service.attributes)}, and this form has room for one number; "
            "use /v2/models/M/infer"
        )
    return scored.rewards[:, 0].tolist()


def _activated(rewards: np.ndarray, activation: bool) -> np.ndarray:
    """Returns probabilities [B, A] as transformers' classifiers do: sigmoid of one logit, softmax of several."""
    if not activation:
        return rewards
    if rewards.shape[1] == 1:
        return 0.5 * (1 + np.tanh(0.5 * rewards))
    powers = np.exp(rewards - rewards.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@contextlib.contextmanager
def _rewarding(registry: ModelRegistry, name: str) -> Iterator[RewardService]:
    with registry.use(name) as service:
        if not isinstance(service, RewardService):
            raise RequestError(f"model {name!r} gives no rewards; use /v2/models/{name}/infer")
        yield service


def _with(call: Call, **changes: Any) -> Call:
    return dataclasses.replace(call, **changes)
