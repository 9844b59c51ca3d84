"""From a request's tensors to token sequences: what rewards and values are asked of.

Axis letters: B sequences of a request, S tokens of the padded sequences.
"""

import asyncio
import dataclasses
import json
import math
from typing import Any

import numpy as np

from rmjax.core.errors import InputError
from rmjax.data.records.conversations import BadField
from rmjax.data.records.conversations import messages as chat_messages
from rmjax.data.schema import Message
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.serving.errors import DeadlinePassed, RequestError
from rmjax.serving.protocol import Arrays, Call, Tensor
from rmjax.serving.services.tokenizer_thread import Text, TokenizerThread

INPUTS = {
    "sentences": Tensor("BYTES", (-1, 1)),
    "tokens": Tensor("INT64", (-1, -1)),
    "sequence_lengths": Tensor("INT64", (-1, 1)),
    "messages": Tensor("BYTES", (-1, 1)),
    "add_EOS": Tensor("BOOL", (-1, 1)),
}
EXCEEDED = Tensor("INT32", (-1, 1))  # an output: 1 where a sequence was cut
_WAYS = "'sentences', or 'messages', or 'tokens' with 'sequence_lengths'"
_CHARACTERS_PER_TOKEN = 100  # far more than any text has; what is longer would only keep the tokenizer busy
_LONGEST_TEXT = 1 << 20  # characters that are tokenised in any case, for truncation

Conversation = Text | np.ndarray


class InputReader:
    """Reads what a model is asked about.

    Args:
      tokenizer: of the model.
      vocab_size: V; tokens that clients send are below it.
      max_length: tokens of the longest sequence.
      truncate: cut every overlong sequence at its right end, asked or not.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, max_length: int, truncate: bool = False):
        self.max_length, self.truncate = max_length, truncate
        self._tokenise, self._vocab_size = TokenizerThread(tokenizer), vocab_size
        self._opening, self._around = tokenizer.opening, tokenizer.around

    @property
    def waiting(self) -> int:
        """Texts that wait for the tokenizer."""
        return self._tokenise.waiting

    def conversations(self, tensors: Arrays, call: Call) -> tuple[str, list[Conversation], Call]:
        """Returns the name of the tensor that holds the request's sequences, the B sequences, and how to take them.

        Args:
          tensors: one of
            `sentences` [B, 1], UTF-8 text;
            `messages` [B, 1], a JSON list of chat messages each;
            `tokens` [B, S] and `sequence_lengths` [B, 1], what lies behind a sequence's length being padding.
            Beside `sentences`, tokens are not looked at, as in NeMo-Aligner's servers, and `add_EOS` [B, 1] of its
            annotation script may say whether they are to be closed, which is for all B alike.

        Raises:
          RequestError: a tensor is missing or cannot be used; names it.
        """
        given = set(tensors)
        if "sentences" in given:
            given -= {"tokens", "sequence_lengths", "add_EOS"}
        if given == {"tokens", "sequence_lengths"}:
            return "tokens", self._sequences(tensors["tokens"], tensors["sequence_lengths"]), call
        if given not in ({"sentences"}, {"messages"}):
            raise RequestError(f"the request has the tensors {sorted(given)}; give {_WAYS}")
        name = given.pop()
        _check_column(name, tensors[name])
        texts = [_decode(name, row, value) for row, value in enumerate(tensors[name][:, 0])]
        if name == "messages":
            return name, [_messages(row, text) for row, text in enumerate(texts)], call
        if (closing := tensors.get("add_EOS")) is not None:
            if closing.shape != (len(texts), 1) or len(set(closing[:, 0].tolist())) > 1:
                raise RequestError(
                    f"tensor 'add_EOS' has shape {list(closing.shape)} and {int(closing.sum())} true "
                    f"values; expected [{len(texts)}, 1], all alike"
                )
            call = dataclasses.replace(call, add_eos=bool(closing[0, 0]))
        return name, texts, call

    async def sequences(
        self, conversations: list[Conversation], source: str, call: Call
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Returns the tokens of B conversations, and of which of them some were cut off, bool [B].

        Strings are tokenised as they are, without BOS or EOS unless `call.add_eos`; messages are rendered with the chat
        template. What is overlong is cut only where `call.truncate` or the server says so.

        Raises:
          RequestError: one of them cannot be tokenised; names it.
        """
        for row, conversation in enumerate(conversations):
            self._check_text(source, row, conversation)
        texts = [c for c in conversations if not isinstance(c, np.ndarray)]
        try:
            async with asyncio.timeout_at(call.deadline if texts and call.deadline < math.inf else None):
                encoded = iter(await self._tokenise(texts, call.add_eos) if texts else ())
        except TimeoutError:
            raise DeadlinePassed("the deadline passed before the request was tokenised") from None
        except InputError:  # the chat template refuses the messages, or there is none
            for row, text in enumerate(conversations):
                await self._tokenise_alone(source, row, text)
            raise  # one of them alone is at fault
        found = [c if isinstance(c, np.ndarray) else next(encoded) for c in conversations]
        limit = min(call.limit or self.max_length, self.max_length)
        exceeded = np.array([len(sequence) > limit for sequence in found], bool)
        if call.truncate or self.truncate:
            found = [s[-limit:] if call.truncate == "left" else s[:limit] for s in found]
        return found, exceeded

    async def _tokenise_alone(self, source: str, row: int, text: Conversation) -> None:
        """Raises RequestError, which names the row, if it cannot be tokenised."""
        try:
            if not isinstance(text, np.ndarray):
                await self._tokenise([text], False)
        except InputError as error:
            raise RequestError(f"tensor {source!r}, row {row}: {error}") from error

    async def words(self, tokens: np.ndarray) -> list[str]:
        """Returns what each token alone stands for."""
        return await self._tokenise.words(tokens)

    def opened(self, text: str) -> str:
        """Returns a text that begins with the BOS, where the tokenizer would add it: as vLLM tokenises."""
        return text if text.startswith(self._opening) else self._opening + text

    def stripped(self, text: str) -> str:
        """Returns a text without padding and EOS at its ends, as OpenRLHF's server takes it."""
        while text and (around := [mark for mark in self._around if text.startswith(mark) or text.endswith(mark)]):
            for mark in around:
                text = text.removeprefix(mark).removesuffix(mark)
        return text

    def check_tokens(self, source: str, row: int, tokens: np.ndarray) -> np.ndarray:
        """Returns the tokens int [length] if the vocabulary has them all.

        Raises:
          RequestError: it does not.
        """
        least, most = (int(tokens.min()), int(tokens.max())) if len(tokens) else (0, 0)
        if least < 0 or most >= self._vocab_size:
            raise RequestError(
                f"tensor {source!r}, row {row} holds the token {least if least < 0 else most}; the "
                f"vocabulary has 0 to {self._vocab_size - 1}"
            )
        return tokens

    def close(self) -> None:
        """Ends the tokenising thread."""
        self._tokenise.close()

    def _sequences(self, tokens: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        _check_column("sequence_lengths", lengths)
        if tokens.ndim != 2 or len(tokens) != len(lengths):
            raise RequestError(
                f"tensor 'tokens' has shape {list(tokens.shape)}; expected [B, S] with B = "
                f"{len(lengths)}, as sequence_lengths [B, 1] says"
            )
        known = tokens.size > 0 and tokens.min() >= 0 and tokens.max() < self._vocab_size  # what pads them included
        if known:
            tokens = tokens.astype(np.int32, copy=False)  # at once, not row by row
        sequences = []
        for row, length in enumerate(lengths[:, 0].tolist()):
            if not 1 <= length <= tokens.shape[1]:
                raise RequestError(
                    f"tensor 'sequence_lengths', row {row} is {length}; expected 1 to "
                    f"{tokens.shape[1]}, the width of tokens"
                )
            sequence = tokens[row, :length]
            sequences.append(sequence if known else self.check_tokens("tokens", row, sequence))
        return sequences

    def _check_text(self, source: str, row: int, conversation: Conversation) -> None:
        """Raises RequestError for what the tokenizer would choke on."""
        if isinstance(conversation, np.ndarray):
            return
        if not conversation:
            raise RequestError(f"tensor {source!r}, row {row} has no tokens; expected at least one")
        text = conversation if isinstance(conversation, str) else json.dumps(conversation, ensure_ascii=False)
        if len(text) > (most := max(_LONGEST_TEXT, _CHARACTERS_PER_TOKEN * self.max_length)):
            raise RequestError(
                f"tensor {source!r}, row {row} has {len(text)} characters; at most {most} are read for "
                f"{self.max_length} tokens: shorten it"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
            raise RequestError(f"tensor {source!r}, row {row} is not Unicode text ({error.reason})") from error


def check_messages(source: str, row: int, messages: Any) -> list[Message]:
    """Returns chat messages as training takes them.

    Raises:
      RequestError: they are none.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestError(
            f"tensor {source!r}, row {row} is {json.dumps(messages):.60}; expected a JSON list of chat messages"
        )
    try:
        return chat_messages(messages, f"tensor {source!r}, row {row}")
    except BadField as error:
        raise RequestError(str(error)) from error


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
