"""A reward model: what its tensors mean. The faces carry them to it.

Axis letters: B sequences of a request, S tokens of the padded sequences, A attributes.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.schema import Message
from rmjax.serving.engine import Engine
from rmjax.serving.errors import RequestError
from rmjax.serving.protocol import Arrays, Call, Tensor
from rmjax.serving.tokenising import Encode, Text, Tokenising

INPUTS = {
    "sentences": Tensor("BYTES", (-1, 1)),
    "tokens": Tensor("INT64", (-1, -1)),
    "sequence_lengths": Tensor("INT64", (-1, 1)),
    "messages": Tensor("BYTES", (-1, 1)),
}
_WAYS = "'sentences', or 'messages', or 'tokens' with 'sequence_lengths'"
_ROLES = ("role", "content")
_CHARACTERS_PER_TOKEN = 100  # far more than any text has; what is longer would only keep the tokenizer busy
_LONGEST_TEXT = 1 << 20  # characters that are tokenised in any case, for truncation

Conversation = Text | np.ndarray


@dataclasses.dataclass(frozen=True)
class Scored:
    """Rewards of B sequences.

    Attributes:
      rewards: float32 [B, A].
      lengths: the tokens that were scored, of each.
      exceeded: whether it was longer and cut, bool [B].
    """

    rewards: np.ndarray
    lengths: list[int]
    exceeded: np.ndarray


class RewardService:
    """Answers requests for rewards.

    Args:
      encode: `Tokenizer.encode`: (strings or lists of messages, close) -> tokens of each.
      vocab_size: V; tokens that clients send are below it.
      attributes: names of the A rewards.
      strings: how prompt and response strings become a conversation: `joined`, or `chat` messages.
      truncate: cut every overlong sequence at its right end, asked or not; the output `exceeded` says of which.
      facts: of the model, for people.
    """

    def __init__(
        self, engine: Engine, encode: Encode, *, vocab_size: int, attributes: Sequence[str], strings: str = "joined",
        truncate: bool = False, facts: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        self.engine, self.attributes, self.strings = engine, tuple(attributes), strings
        self.inputs, self.max_batch_size = INPUTS, engine.queue_size
        self.outputs = {"rewards": Tensor("FP32", (-1, len(self.attributes)))}
        if truncate:
            self.outputs["exceeded"] = Tensor("INT32", (-1, 1))
        self.facts = {"attributes": list(attributes), "max_length": engine.max_length, **(facts or {})}
        self._tokenise, self._vocab_size, self._truncate = Tokenising(encode), vocab_size, truncate

    async def infer(self, tensors: Arrays, call: Call) -> Arrays:
        """Returns `rewards` float32 [B, A], and `exceeded` int32 [B, 1] where truncation is asked for.

        Args:
          tensors: one of
            `sentences` [B, 1], UTF-8 text, tokenised as it is, without BOS or EOS unless `call.close`;
            `messages` [B, 1], a JSON list of chat messages each, rendered with the chat template;
            `tokens` [B, S] and `sequence_lengths` [B, 1], what lies behind a sequence's length being padding.

        Raises:
          RequestError: a tensor is missing or cannot be used; names it.
          ServingError: those of `Engine.submit`.
        """
        given = set(tensors)
        conversations: list[Conversation]
        if given == {"tokens", "sequence_lengths"}:
            name, conversations = "tokens", self._sequences(tensors["tokens"], tensors["sequence_lengths"])
        elif given in ({"sentences"}, {"messages"}):
            name = given.pop()
            _check_column(name, tensors[name])
            texts = [_decode(name, row, value) for row, value in enumerate(tensors[name][:, 0])]
            conversations = texts if name == "sentences" else [_messages(row, text) for row, text in enumerate(texts)]
        else:
            raise RequestError(f"the request has the tensors {sorted(given)}; give {_WAYS}")
        scored = await self.score(conversations, name, call)
        if not (call.truncate or self._truncate):
            return {"rewards": scored.rewards}
        return {"rewards": scored.rewards, "exceeded": scored.exceeded[:, None].astype(np.int32)}

    async def score(self, conversations: Sequence[Conversation], source: str, call: Call) -> Scored:
        """Scores strings, lists of messages, or tokens int [length].

        Args:
          source: the tensor or field they came in, for messages.

        Raises:
          RequestError: one of them cannot be scored; names it.
          ServingError: those of `Engine.submit`.
        """
        for row, conversation in enumerate(conversations):
            self._check_text(source, row, conversation)
        texts = [c for c in conversations if not isinstance(c, np.ndarray)]
        encoded = iter(await self._tokens(texts, source, call.close) if texts else ())
        sequences = [c if isinstance(c, np.ndarray) else next(encoded) for c in conversations]
        limit = min(call.limit or self.engine.max_length, self.engine.max_length)
        exceeded = np.array([len(sequence) > limit for sequence in sequences], bool)
        if call.truncate or self._truncate:
            sequences = [s[-limit:] if call.truncate == "left" else s[:limit] for s in sequences]
        rewards = await self.engine.submit(sequences, source, client=call.client, deadline=call.deadline)
        return Scored(rewards, [len(sequence) for sequence in sequences], exceeded)

    async def _tokens(self, texts: list[Text], source: str, close: bool) -> list[np.ndarray]:
        self.engine.admit(source, len(texts), ahead=self._tokenise.waiting)  # before the tokenizer works for nothing
        try:
            return await self._tokenise(texts, close)
        except InputError as error:  # the chat template refuses the messages, or there is none
            raise RequestError(f"tensor {source!r}: {error}") from error

    def _check_text(self, source: str, row: int, conversation: Conversation) -> None:
        """Raises RequestError for what the tokenizer would choke on."""
        if isinstance(conversation, np.ndarray):
            return
        if not conversation:
            raise RequestError(f"tensor {source!r}, row {row} has no tokens; expected at least one")
        text = conversation if isinstance(conversation, str) else json.dumps(conversation, ensure_ascii=False)
        if len(text) > (most := max(_LONGEST_TEXT, _CHARACTERS_PER_TOKEN * self.engine.max_length)):
            raise RequestError(f"tensor {source!r}, row {row} has {len(text)} characters; at most {most} are read for "
                               f"{self.engine.max_length} tokens: shorten it")  # fmt: skip
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
            raise RequestError(f"tensor {source!r}, row {row} is not Unicode text ({error.reason})") from error

    def check_tokens(self, source: str, row: int, tokens: np.ndarray) -> np.ndarray:
        """Returns the tokens int [length] if the vocabulary has them all.

        Raises:
          RequestError: it does not.
        """
        if (wrong := tokens[(tokens < 0) | (tokens >= self._vocab_size)]).size:
            raise RequestError(f"tensor {source!r}, row {row} holds the token {int(wrong[0])}; the vocabulary has 0 to "
                               f"{self._vocab_size - 1}")  # fmt: skip
        return tokens

    def _sequences(self, tokens: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        _check_column("sequence_lengths", lengths)
        if tokens.ndim != 2 or len(tokens) != len(lengths):
            raise RequestError(f"tensor 'tokens' has shape {list(tokens.shape)}; expected [B, S] with B = "
                               f"{len(lengths)}, as sequence_lengths [B, 1] says")  # fmt: skip
        sequences = []
        for row, length in enumerate(lengths[:, 0].tolist()):
            if not 1 <= length <= tokens.shape[1]:
                raise RequestError(f"tensor 'sequence_lengths', row {row} is {length}; expected 1 to "
                                   f"{tokens.shape[1]}, the width of tokens")  # fmt: skip
            sequences.append(self.check_tokens("tokens", row, tokens[row, :length]))
        return sequences

    def close(self) -> None:
        """Ends the tokenising thread."""
        self._tokenise.close()


def check_messages(source: str, row: int, messages: Any) -> list[Message]:
    """Returns chat messages if they are a list of objects whose role and content are strings.

    Raises:
      RequestError: they are not.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestError(f"tensor {source!r}, row {row} is {json.dumps(messages):.60}; expected a JSON list of chat "
                           "messages")  # fmt: skip
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in _ROLES):
            raise RequestError(f"tensor {source!r}, row {row} holds {json.dumps(message):.60}; expected an object "
                               "whose role and content are strings")  # fmt: skip
    return messages


def _check_column(name: str, tensor: np.ndarray) -> None:
    if tensor.ndim != 2 or tensor.shape[1] != 1 or not len(tensor):
        raise RequestError(f"tensor {name!r} has shape {list(tensor.shape)}; expected [B, 1] with B at least 1")


def _decode(name: str, row: int, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"tensor {name!r}, row {row} is not UTF-8 ({error})") from error


def _messages(row: int, text: str) -> list[Message]:
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"tensor 'messages', row {row} is not JSON ({error})") from error
    return check_messages("messages", row, messages)
