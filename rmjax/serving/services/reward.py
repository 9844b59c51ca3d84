"""A served reward model: request tensors to rewards, through its tokenizer and its scoring queue.

Axis letters: B sequences of a request, A attributes.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.serving.engine.queue import Engine
from rmjax.serving.errors import InputName
from rmjax.serving.protocol import Arrays, Call, Tensor
from rmjax.serving.services.inputs import EXCEEDED, INPUTS, Conversation, InputReader


@dataclasses.dataclass(frozen=True)
class ScoreResult:
    """Rewards of B sequences.

    Attributes:
      rewards: float32 [B, A].
      lengths: number of scored tokens of each sequence.
      exceeded: bool [B], whether the sequence exceeded the limit and was truncated.
      reward_std: standard deviations of the rewards, float32 [B, A]; None if the model has none.
    """

    rewards: np.ndarray
    lengths: list[int]
    exceeded: np.ndarray
    reward_std: np.ndarray | None = None


class RewardService:
    """A reward model that answers requests.

    Args:
      tokenizer, vocab_size, truncate: see `InputReader`.
      attributes: names of the A rewards.
      prompt_format: how prompt and response strings form a conversation: `joined` as one string, or as `chat` messages.
      uncertain: the engine returns [B, 2 A], the rewards and their standard deviations.
      metadata: of the model, added to the served metadata.
    """

    inputs: Mapping[str, Tensor] = INPUTS
    outputs: Mapping[str, Tensor]
    metadata: Mapping[str, Any]

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        attributes: Sequence[str],
        prompt_format: str = "joined",
        truncate: bool = False,
        uncertain: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ):
        self.engine, self.attributes, self.prompt_format = engine, tuple(attributes), prompt_format
        self.reader = InputReader(tokenizer, vocab_size, engine.max_length, truncate, engine.metrics)
        self.metrics, self.max_batch_size = engine.metrics, engine.queue_size
        values = Tensor("FP32", (-1, len(self.attributes)))
        self.outputs = {"rewards": values, "exceeded": EXCEEDED} | ({"reward_std": values} if uncertain else {})
        self.metadata = {"attributes": list(attributes), "max_length": engine.max_length, **(metadata or {})}

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return self.engine.ready

    async def infer(self, tensors: Arrays, call: Call) -> Arrays:
        """Returns `rewards` float32 [B, A], and `exceeded` int32 [B, 1], 1 if the sequence was truncated.

        Of a model with an uncertain head, `reward_std` float32 [B, A] too.

        Raises:
          RequestError: a tensor is missing or invalid; names it.
          ServingError: see `Engine.submit`.
        """
        source, conversations, call = self.reader.parse(tensors, call)
        scored = await self.score(conversations, source, call)
        found = {"rewards": scored.rewards, "exceeded": scored.exceeded[:, None].astype(np.int32)}
        return found if scored.reward_std is None else found | {"reward_std": scored.reward_std}

    async def score(self, conversations: Sequence[Conversation], source: InputName, call: Call) -> ScoreResult:
        """Scores strings, lists of messages, or tokens int [length].

        Args:
          source: input tensor or field of the conversations.

        Raises:
          RequestError: a conversation cannot be scored; names it.
          ServingError: see `Engine.submit`.
        """
        # Reject before tokenization if the queue is full.
        self.engine.admit(source, len(conversations), ahead=self.reader.queued, client=call.client)
        sequences, exceeded = await self.reader.tokenize(conversations, source, call)
        rewards = await self.engine.submit(sequences, source, client=call.client, deadline=call.deadline)
        lengths, count = [len(sequence) for sequence in sequences], len(self.attributes)
        if "reward_std" not in self.outputs:
            return ScoreResult(rewards, lengths, exceeded)
        values, std = np.ascontiguousarray(rewards[:, :count]), np.ascontiguousarray(rewards[:, count:])
        return ScoreResult(values, lengths, exceeded, std)

    async def start(self) -> None:
        """Warms up; requests are accepted from then on."""
        await self.engine.start()

    async def close(self) -> None:
        """Completes the queued requests, and stops the threads."""
        await self.engine.drain()
        self.reader.close()
