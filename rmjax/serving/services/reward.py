"""A reward model: its outputs, and the queue that its requests wait in.

Axis letters: B sequences of a request, A attributes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.serving.engine.queue import Engine
from rmjax.serving.metrics import ModelMetrics
from rmjax.serving.protocol import Arrays, Call, Tensor
from rmjax.serving.services.inputs import EXCEEDED, INPUTS, Conversation, InputReader


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
      tokenizer: of the model.
      vocab_size: V; tokens that clients send are below it.
      attributes: names of the A rewards.
      strings: how prompt and response strings become a conversation: `joined`, or `chat` messages.
      truncate: cut every overlong sequence at its right end, asked or not; the output `exceeded` says of which.
      metadata: of the model, for people.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        attributes: Sequence[str],
        strings: str = "joined",
        truncate: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ):
        self.engine, self.attributes, self.strings = engine, tuple(attributes), strings
        self.reader = InputReader(tokenizer, vocab_size, engine.max_length, truncate)
        self.inputs, self.max_batch_size = INPUTS, engine.queue_size
        self.outputs = {"rewards": Tensor("FP32", (-1, len(self.attributes))), "exceeded": EXCEEDED}
        self.metadata = {"attributes": list(attributes), "max_length": engine.max_length, **(metadata or {})}

    @property
    def ready(self) -> bool:
        """Whether requests are answered now."""
        return self.engine.ready

    @property
    def metrics(self) -> ModelMetrics:
        """Counts the requests."""
        return self.engine.metrics

    async def infer(self, tensors: Arrays, call: Call) -> Arrays:
        """Returns `rewards` float32 [B, A], and `exceeded` int32 [B, 1], 1 where a sequence was cut.

        Raises:
          RequestError: a tensor is missing or cannot be used; names it.
          ServingError: those of `Engine.submit`.
        """
        source, conversations, call = self.reader.conversations(tensors, call)
        scored = await self.score(conversations, source, call)
        return {"rewards": scored.rewards, "exceeded": scored.exceeded[:, None].astype(np.int32)}

    async def score(self, conversations: list[Conversation], source: str, call: Call) -> Scored:
        """Scores strings, lists of messages, or tokens int [length].

        Args:
          source: the tensor or field they came in, for messages.

        Raises:
          RequestError: one of them cannot be scored; names it.
          ServingError: those of `Engine.submit`.
        """
        # Before the tokenizer works for nothing.
        self.engine.admit(source, len(conversations), ahead=self.reader.waiting, client=call.client)
        sequences, exceeded = await self.reader.sequences(conversations, source, call)
        rewards = await self.engine.submit(sequences, source, client=call.client, deadline=call.deadline)
        return Scored(rewards, [len(sequence) for sequence in sequences], exceeded)

    async def start(self) -> None:
        """Warms up; requests are answered from then on."""
        await self.engine.start()

    async def close(self) -> None:
        """Answers the requests that wait, and ends."""
        await self.engine.drain()
        self.reader.close()
