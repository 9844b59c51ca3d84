"""The model `reward_model`: what its tensors mean. The faces (gRPC) carry them to it.

Axis letters: B sequences of a request, S tokens of the padded sequences, A attributes.
"""

import asyncio
import concurrent.futures
import json
from collections.abc import Callable, Sequence

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.schema import Message
from rmjax.serving.engine import Engine, RequestError

NAME = "reward_model"
INPUTS = {"sentences": "BYTES", "tokens": "INT64", "sequence_lengths": "INT64", "messages": "BYTES"}
INPUT_SHAPES = {"sentences": (-1, 1), "tokens": (-1, -1), "sequence_lengths": (-1, 1), "messages": (-1, 1)}
OUTPUT = "rewards"
_WAYS = "'sentences', or 'messages', or 'tokens' with 'sequence_lengths'"

Encode = Callable[[Sequence[str | list[Message]], bool], list[np.ndarray]]


class RewardService:
    """Answers requests for rewards.

    Args:
      encode: `Tokenizer.encode`: (strings or lists of messages, close) -> tokens of each.
      vocab_size: V; tokens that clients send are below it.
      attributes: names of the A rewards.
    """

    def __init__(self, engine: Engine, encode: Encode, *, vocab_size: int, attributes: Sequence[str]):
        self.engine, self.attributes = engine, tuple(attributes)
        self._encode, self._vocab_size = encode, vocab_size
        # One thread: Hugging Face's fast tokenizers fail with "Already borrowed" when two use them at once.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tokenise")

    async def rewards(self, tensors: dict[str, np.ndarray]) -> np.ndarray:
        """Returns rewards float32 [B, A].

        Args:
          tensors: one of
            `sentences` [B, 1], UTF-8 text, tokenised as it is, without BOS or EOS;
            `messages` [B, 1], a JSON list of chat messages each, rendered with the chat template;
            `tokens` [B, S] and `sequence_lengths` [B, 1], what lies behind a sequence's length being padding.

        Raises:
          RequestError: a tensor is missing or cannot be used; names it.
          Exception: those of `Engine.submit`.
        """
        given = set(tensors)
        if given == {"tokens", "sequence_lengths"}:
            return await self.engine.submit(self._sequences(tensors["tokens"], tensors["sequence_lengths"]), "tokens")
        if given not in ({"sentences"}, {"messages"}):
            raise RequestError(f"the request has the tensors {sorted(given)}; give {_WAYS}")
        name = given.pop()
        _check_column(name, tensors[name])
        texts = [_decode(name, row, value) for row, value in enumerate(tensors[name][:, 0])]
        conversations = texts if name == "sentences" else [_messages(row, text) for row, text in enumerate(texts)]
        try:
            encoded = await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, conversations, False)
        except InputError as error:  # the chat template refuses the messages, or there is none
            raise RequestError(f"tensor {name!r}: {error}") from error
        return await self.engine.submit(encoded, name)

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
            sequence = tokens[row, :length]
            if (wrong := sequence[(sequence < 0) | (sequence >= self._vocab_size)]).size:
                raise RequestError(f"tensor 'tokens', row {row} holds the token {int(wrong[0])}; the vocabulary has "
                                   f"0 to {self._vocab_size - 1}")  # fmt: skip
            sequences.append(sequence)
        return sequences

    def close(self) -> None:
        """Ends the tokenising thread."""
        self._thread.shutdown()


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
    except (json.JSONDecodeError, RecursionError) as error:
        raise RequestError(f"tensor 'messages', row {row} is not JSON ({error})") from error
    if not isinstance(messages, list) or not messages:
        raise RequestError(f"tensor 'messages', row {row} is {text:.60}; expected a JSON list of chat messages")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise RequestError(f"tensor 'messages', row {row} holds {json.dumps(message):.60}; expected an object "
                               "whose role and content are strings")  # fmt: skip
    return messages
