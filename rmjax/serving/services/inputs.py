"""Request tensors to token sequences: validation, tokenization and truncation.

Axis letters: B sequences of a request, S tokens of the padded sequences.
"""

import asyncio
import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from rmjax.core.errors import InputError
from rmjax.core.json_text import DuplicateKey, parse
from rmjax.data.records.fields import BadField
from rmjax.data.records.fields import messages as chat_messages
from rmjax.data.records.tools import tools_message
from rmjax.data.schema import Message
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.serving.errors import DeadlineExceeded, InputName, RequestError, tensor_name
from rmjax.serving.metrics import ModelMetrics
from rmjax.serving.protocol import Arrays, Call, Tensor
from rmjax.serving.services.tokenizer_thread import Text, TokenizerThread

INPUTS = {
    "sentences": Tensor("BYTES", (-1, 1)),
    "tokens": Tensor("INT64", (-1, -1)),
    "sequence_lengths": Tensor("INT64", (-1, 1)),
    "messages": Tensor("BYTES", (-1, 1)),
    "add_EOS": Tensor("BOOL", (-1, 1)),
}
TOKENS = tensor_name("tokens")
EXCEEDED = Tensor("INT32", (-1, 1))  # an output: 1 if the sequence exceeded the limit and was truncated
_CHARACTERS_PER_TOKEN = 100  # more than any real text has; longer texts would only keep the tokenizer busy
_MESSAGE_EXAMPLE = '{"role": "user", "content": "Hi"}'
_MAX_LOGGED = 20  # kinds of content that a chat template leaves out; a kind may hold a tag of the request's text
_MIN_CHARACTER_LIMIT = 1 << 20  # texts up to this length are tokenized in any case, for truncation

Conversation = Text | np.ndarray


class InputReader:
    """Reads the token sequences of a request.

    Args:
      tokenizer: the model's.
      vocab_size: V; token ids in requests must be smaller.
      max_length: tokens of the longest sequence.
      truncate: truncate overlong sequences on the right even if the request does not ask for it.
      metrics: count the conversations of which the chat template leaves out content.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        max_length: int,
        truncate: bool = False,
        metrics: ModelMetrics | None = None,
    ):
        self.max_length, self.truncate = max_length, truncate
        self._metrics, self._logged = metrics, set[str]()
        self._tokenizer, self._vocab_size = TokenizerThread(tokenizer), vocab_size
        self._readout = tokenizer.readout_place
        self._bos_prefix, self._pad_and_eos = tokenizer.bos_prefix, tokenizer.pad_and_eos

    @property
    def queued(self) -> int:
        """Number of texts in the tokenizer's queue."""
        return self._tokenizer.queued

    def parse(self, tensors: Arrays, call: Call) -> tuple[InputName, Sequence[Conversation], Call]:
        """Returns the name of the tensor with the request's conversations, the B conversations, and the call.

        Args:
          tensors: one of
            `sentences` [B, 1], UTF-8 text;
            `messages` [B, 1], a JSON list of chat messages each, or an object {"messages": list, "tools": list};
            `tokens` [B, S] and `sequence_lengths` [B, 1], padded on the right.
            With `sentences`, tokens are ignored, as in NeMo-Aligner's servers, and `add_EOS` [B, 1] of its annotation
            script, whose values must all be equal, replaces `call.add_eos`.

        Raises:
          RequestError: a tensor is missing or invalid; names it.
        """
        given = set(tensors)
        if "sentences" in given:
            given -= {"tokens", "sequence_lengths", "add_EOS"}
        if given == {"tokens", "sequence_lengths"}:
            return TOKENS, self._unpad(tensors["tokens"], tensors["sequence_lengths"]), call
        if given not in ({"sentences"}, {"messages"}):
            expected = "'sentences', or 'messages', or 'tokens' with 'sequence_lengths'"
            raise RequestError(f"the request has the tensors {sorted(given)}; give {expected}")
        name = given.pop()
        source = tensor_name(name)
        _check_column(name, tensors[name])
        texts = [_decode(source, row, value) for row, value in enumerate(tensors[name][:, 0].tolist())]
        if name == "messages":
            return source, [_parse_messages(source.row(row), text) for row, text in enumerate(texts)], call
        if (add_eos := tensors.get("add_EOS")) is not None:
            if add_eos.shape != (len(texts), 1) or len(set(add_eos[:, 0].tolist())) > 1:
                raise RequestError(
                    f"tensor 'add_EOS' has shape {list(add_eos.shape)} and {int(add_eos.sum())} true values; "
                    f"expected shape [{len(texts)}, 1], that of 'sentences', and values that are all equal"
                )
            call = dataclasses.replace(call, add_eos=bool(add_eos[0, 0]))
        return source, texts, call

    async def tokenize(
        self, conversations: Sequence[Conversation], source: InputName, call: Call
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Returns the tokens int [length] of B conversations, and whether each exceeded the limit, bool [B].

        Strings get special tokens and EOS only with `call.add_eos`; messages are rendered with the chat template, and
        what it leaves out of them is noted in `call.notes`.
        Overlong sequences are truncated only with `call.truncate` or the server's own `truncate`.

        Raises:
          RequestError: a conversation cannot be tokenized; names it.
          DeadlineExceeded: the deadline passed before the texts were tokenized.
        """
        texts = []
        for row, conversation in enumerate(conversations):
            if not isinstance(conversation, np.ndarray):
                self._check_text(source, row, conversation)
                texts.append(conversation)
        try:
            if not texts:
                encoded = []
            elif call.deadline == math.inf:
                encoded = await self._tokenizer.encode(texts, call.add_eos)
            else:
                async with asyncio.timeout_at(call.deadline):
                    encoded = await self._tokenizer.encode(texts, call.add_eos)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the request was tokenized") from None
        except InputError:  # raised by the chat template, or there is none; find the conversation that causes it
            for row, conversation in enumerate(conversations):
                try:
                    if not isinstance(conversation, np.ndarray):
                        await self._tokenizer.encode([conversation], False)
                except InputError as error:
                    raise RequestError(f"{source.row(row)}: {error}") from error
            raise
        if left_out := {kind for entry in encoded for kind in entry.left_out}:
            self._note_left_out(left_out, sum(bool(entry.left_out) for entry in encoded), call)
        tokens = iter(entry.tokens for entry in encoded)
        sequences = [c if isinstance(c, np.ndarray) else next(tokens) for c in conversations]
        limit = min(call.limit or self.max_length, self.max_length)
        exceeded = np.array([len(sequence) > limit for sequence in sequences], bool)
        if truncate := call.truncate or self.truncate:
            cut = (lambda s: s[-limit:]) if call.truncate == "left" else lambda s: self._readout.truncate(s, limit)
            sequences = [cut(sequence) for sequence in sequences]
        if self._readout.depends_on_tokens:
            for row, sequence in enumerate(sequences):
                try:
                    self._readout.find(sequence)
                except InputError as error:
                    after = f" (truncated to {limit} tokens)" if truncate and exceeded[row] else ""
                    raise RequestError(f"{source.row(row)}{after}: {error}") from error
        return sequences, exceeded

    def complete(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the tokens int [length] of a text with the token at which the model's reward is read."""
        return self._readout.complete(tokens)

    def _note_left_out(self, kinds: set[str], count: int, call: Call) -> None:
        """Notes what the chat template left out of `count` conversations, and logs each kind once."""
        call.notes["left_out"] = ", ".join(sorted(kinds))
        if self._metrics is None:
            return
        self._metrics.left_out.inc(count)
        for kind in sorted(kinds - self._logged)[: _MAX_LOGGED - len(self._logged)]:
            self._logged.add(kind)
            logging.warning("model %s: the chat template leaves out content of requests: %s", self._metrics.model, kind)

    async def token_strings(self, tokens: np.ndarray) -> list[str]:
        """Returns the text of each token."""
        return await self._tokenizer.token_strings(tokens)

    def with_bos(self, text: str) -> str:
        """Returns a text that starts with the BOS token, if the tokenizer adds one by default; as in vLLM."""
        return text if text.startswith(self._bos_prefix) else self._bos_prefix + text

    def without_pad_and_eos(self, text: str) -> str:
        """Returns a text without padding and EOS tokens at its start and end, as in OpenRLHF's server."""
        while text and (found := [t for t in self._pad_and_eos if text.startswith(t) or text.endswith(t)]):
            for token in found:
                text = text.removeprefix(token).removesuffix(token)
        return text

    def check_tokens(self, name: str, tokens: np.ndarray) -> np.ndarray:
        """Returns the tokens int [length] of the input `name`; raises RequestError if one is not in the vocabulary."""
        least, most = (int(tokens.min()), int(tokens.max())) if len(tokens) else (0, 0)
        if least < 0 or most >= self._vocab_size:
            found, expected = least if least < 0 else most, f"expected 0 to {self._vocab_size - 1}"
            raise RequestError(
                f"{name} holds the token {found}; {expected}, the model's vocabulary: use the model's own tokenizer"
            )
        return tokens

    def close(self) -> None:
        """Stops the tokenizer thread."""
        self._tokenizer.close()

    def _unpad(self, tokens: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
        _check_column("sequence_lengths", lengths)
        if tokens.ndim != 2 or len(tokens) != len(lengths):
            raise RequestError(
                f"tensor 'tokens' has shape {list(tokens.shape)}; expected [B, S] with B = {len(lengths)}, as "
                "'sequence_lengths'"
            )
        valid = tokens.size > 0 and tokens.min() >= 0 and tokens.max() < self._vocab_size  # padding included
        if valid:
            tokens = tokens.astype(np.int32, copy=False)  # one conversion instead of one per row
        sequences = []
        for row, length in enumerate(lengths[:, 0].tolist()):
            if not 1 <= length <= tokens.shape[1]:
                raise RequestError(
                    f"tensor 'sequence_lengths', row {row} is {length}; expected 1 to {tokens.shape[1]}, the width of "
                    "'tokens'"
                )
            sequence = tokens[row, :length]
            sequences.append(sequence if valid else self.check_tokens(TOKENS.row(row), sequence))
        return sequences

    def _check_text(self, source: InputName, row: int, conversation: Text) -> None:
        """Raises RequestError for a text that is empty, far too long, or not valid Unicode."""
        if not conversation:
            raise RequestError(f"{source.row(row)} is empty; expected a text of at least one token")
        text = conversation if isinstance(conversation, str) else json.dumps(conversation, ensure_ascii=False)
        if len(text) > (limit := max(_MIN_CHARACTER_LIMIT, _CHARACTERS_PER_TOKEN * self.max_length)):
            raise RequestError(f"{source.row(row)} has {len(text)} characters; expected at most {limit}: shorten it")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # a lone surrogate, which JSON can express
            raise RequestError(
                f"{source.row(row)} is not Unicode text ({error.reason}); remove the character {text[error.start]!a}"
            ) from error


def check_messages(name: str, messages: Any, tools: Any = None) -> list[Message]:
    """Returns messages and tools in the form of training; raises RequestError, with the input's name, if invalid."""
    if not isinstance(messages, list) or not messages:
        raise RequestError(
            f"{name} is {json.dumps(messages):.60}; expected a list of chat messages: [{_MESSAGE_EXAMPLE}, ...]"
        )
    try:
        first = tools_message(tools)
    except BadField as error:
        raise RequestError(f"{name}: {error}") from error
    try:
        return [*first, *chat_messages(messages, name)]
    except BadField as error:
        problem = str(error).replace(f" of {name}", "")
        raise RequestError(f"{name}: {problem}; a message is like {_MESSAGE_EXAMPLE}") from error


def _check_column(name: str, tensor: np.ndarray) -> None:
    if tensor.ndim != 2 or tensor.shape[1] != 1 or not len(tensor):
        raise RequestError(
            f"tensor {name!r} has shape {list(tensor.shape)}; expected [B, 1] with B at least 1: one row per sequence"
        )


def _decode(source: InputName, row: int, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{source.row(row)} is not UTF-8 ({error}); encode the text as UTF-8") from error


def _parse_messages(name: str, text: str) -> list[Message]:
    try:
        messages = parse(text)
    except DuplicateKey as error:
        raise RequestError(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"{name} is {text[:60]!r}, which is not JSON ({error}); expected a list of chat messages as JSON text: "
            f"[{_MESSAGE_EXAMPLE}, ...]"
        ) from error
    if isinstance(messages, dict):
        return check_messages(name, messages.get("messages"), messages.get("tools"))
    return check_messages(name, messages)
