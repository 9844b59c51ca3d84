"""The models `critic_infer`, `critic_train` and `critic_save`, as NeMo-Aligner's PPO asks them.

Axis letters: B sequences of a request, S tokens of the padded sequences.
"""

import asyncio
import concurrent.futures
import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rmjax.core.errors import InputError
from rmjax.serving.engine.queue import check_sequence
from rmjax.serving.errors import DeadlinePassed, NotFinite, NotServing, Overloaded, RequestError
from rmjax.serving.metrics import ModelMetrics
from rmjax.serving.protocol import Arrays, Call, Model, Tensor
from rmjax.serving.services.critic_state import Critic
from rmjax.serving.services.inputs import EXCEEDED, INPUTS, InputReader
from rmjax.serving.services.reward import RewardService

_WAITING = 64  # requests that may wait for the critic
_BATCH = 16384  # sequences of a request
_TARGETS = ("returns", "prev_values", "mask")
_TRAIN_INPUTS = {"tokens": Tensor("INT64", (-1, -1))} | dict.fromkeys(_TARGETS, Tensor("FP32", (-1, -1)))
_TRAIN_OUTPUTS = {"loss_mean": Tensor("FP32", (1,))}
_SAVE_INPUTS, _SAVE_OUTPUTS = {"dummy_var": Tensor("INT64", (1,))}, {"status": Tensor("INT64", (1,))}

Rewarding = Callable[[], contextlib.AbstractContextManager[RewardService]]  # `ModelRegistry.use` of the reward model


class CriticWorker:
    """The one thread in which the critic works: what one request trains, the next one's values have seen."""

    def __init__(self, critic: Critic, metrics: ModelMetrics):
        self.critic, self.ready, self._metrics = critic, False, metrics
        self._lock, self._waiting = asyncio.Lock(), 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="critic")

    async def start(self) -> None:
        """Warms up, once for all models of the worker."""
        async with self._lock:
            if not self.ready:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._thread, self.critic.warm_up)
                await loop.run_in_executor(self._thread, self._metrics.count_compilations)
                self.ready = True

    async def run(self, call: Call, work: Callable[..., Any], *arguments: Any) -> Any:
        """Returns `work(*arguments)`, in turn; what is cancelled or late leaves the queue before it begins.

        Raises:
          Overloaded, NotServing, DeadlinePassed: see there.
        """
        if not self.ready:
            raise NotServing("the critic is still warming up, or the server is draining")
        if self._waiting >= _WAITING:
            raise Overloaded(f"{self._waiting} requests wait for the critic; try again later")
        self._waiting += 1
        try:
            async with asyncio.timeout_at(call.deadline if call.deadline < math.inf else None):
                await self._lock.acquire()
        except TimeoutError:
            raise DeadlinePassed("the deadline passed before the critic came to the request") from None
        finally:
            self._waiting -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        finally:
            self._lock.release()

    async def close(self) -> None:
        """Ends after what is under way."""
        async with self._lock:
            self.ready = False
        self._thread.shutdown()


class _CriticModel:
    """What the three models have in common."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    max_batch_size = 0

    def __init__(self, worker: CriticWorker, metrics: ModelMetrics):
        self.worker, self.metrics = worker, metrics
        self.metadata: dict[str, Any] = {"max_length": worker.critic.row_length}

    @property
    def ready(self) -> bool:
        """Whether requests are answered now."""
        return self.worker.ready

    async def start(self) -> None:
        """Warms up; requests are answered from then on."""
        await self.worker.start()

    async def close(self) -> None:
        """Ends."""
        await self.worker.close()


class CriticInfer(_CriticModel):
    """Values of every token, and rewards where a reward model is combined with the critic."""

    inputs, max_batch_size = INPUTS, _BATCH

    def __init__(
        self, worker: CriticWorker, metrics: ModelMetrics, reader: InputReader, rewarding: Rewarding | None = None
    ):
        super().__init__(worker, metrics)
        self.reader, self._rewarding = reader, rewarding
        self.outputs = {"values": Tensor("FP32", (-1, -1)), "exceeded": EXCEEDED}
        if rewarding is not None:
            self.outputs["rewards"] = Tensor("FP32", (-1, 1))

    async def infer(self, tensors: Arrays, call: Call) -> Arrays:
        """Returns `values` float32 [B, S], 0 behind a sequence's length, `exceeded` int32 [B, 1], 1 where it was cut.

        If combined, `rewards` float32 [B, 1] too.
        """
        source, conversations, call = self.reader.conversations(tensors, call)
        sequences, exceeded = await self.reader.sequences(conversations, source, call)
        arrays = [check_sequence(row, s, source, self.worker.critic.row_length) for row, s in enumerate(sequences)]
        found = await self.worker.run(call, self.worker.critic.values, arrays)
        width = tensors["tokens"].shape[1] if source == "tokens" else max(map(len, found))
        values = np.zeros((len(found), width), np.float32)
        for row, one in zip(values, found, strict=True):
            row[: len(one)] = one
        if not np.isfinite(values).all():
            raise NotFinite("the critic's values are not finite; its learning rate may be too high")
        outputs = {"values": values, "exceeded": exceeded[:, None].astype(np.int32)}
        if self._rewarding is None:
            return outputs
        with self._rewarding() as service:
            if len(service.attributes) != 1:
                raise RequestError(
                    f"the reward model gives {', '.join(service.attributes)}, and combined with the "
                    "critic there is worker for one number; ask it alone"
                )
            for row, tokens in enumerate(arrays):
                service.reader.check_tokens(source, row, tokens)
            return outputs | {"rewards": (await service.score(arrays, source, call)).rewards}

    async def close(self) -> None:
        """Ends."""
        await super().close()
        self.reader.close()


class CriticTrain(_CriticModel):
    """One optimizer step a request. A request that is sent again, for its answer was lost, is a second step."""

    inputs, outputs = _TRAIN_INPUTS, _TRAIN_OUTPUTS

    def __init__(self, worker: CriticWorker, metrics: ModelMetrics, reader: InputReader):
        super().__init__(worker, metrics)
        self._reader = reader

    async def infer(self, tensors: Arrays, call: Call) -> Arrays:
        """Trains on `tokens` [B, S] with `returns`, `prev_values` and `mask` [B, S - 1]; returns `loss_mean` [1]."""
        if missing := set(self.inputs) - set(tensors):
            raise RequestError(f"the request lacks the tensors {sorted(missing)}")
        tokens = tensors["tokens"]
        if tokens.ndim != 2 or not len(tokens):
            raise RequestError(f"tensor 'tokens' has shape {list(tokens.shape)}; expected [B, S] with B at least 1")
        for name in _TARGETS:
            if tensors[name].shape != (expected := (len(tokens), tokens.shape[1] - 1)):
                raise RequestError(
                    f"tensor {name!r} has shape {list(tensors[name].shape)}; expected {list(expected)}, "
                    "one token less than 'tokens'"
                )
            if name == "mask" and (tensors[name] < 0).any():
                raise RequestError("tensor 'mask' holds values below 0; expected 1 where a token counts, else 0")
            if not np.isfinite(tensors[name]).all():
                raise RequestError(f"tensor {name!r} holds values that are not finite")
        targets = np.stack([tensors[name] for name in _TARGETS], axis=-1)
        sequences, kept = [], []
        for row in range(len(tokens)):
            # What lies behind the last token with a mask has no part in the loss; rows without any are padding.
            if (inside := np.flatnonzero(tensors["mask"][row])).size:
                sequence = self._reader.check_tokens("tokens", row, tokens[row, : inside[-1] + 1])
                sequences.append(check_sequence(row, sequence, "tokens", self.worker.critic.row_length))
                kept.append(targets[row, : inside[-1] + 1])
        loss = await self.worker.run(call, self.worker.critic.train, sequences, kept) if sequences else 0.0
        if not math.isfinite(loss):
            raise NotFinite(
                f"the critic's loss is {loss}, not finite, so no step was taken; its learning rate or the "
                "returns may be too high"
            )
        return {"loss_mean": np.array([loss], np.float32)}


class CriticSave(_CriticModel):
    """A checkpoint a request."""

    inputs, outputs = _SAVE_INPUTS, _SAVE_OUTPUTS

    async def infer(self, tensors: Arrays, call: Call) -> Arrays:
        """Returns `status` [1] = 0 when the checkpoint is whole; `dummy_var` [1] is there since some tensor must be."""
        if (given := tensors.get("dummy_var")) is None or given.size != 1:
            raise RequestError(
                f"tensor 'dummy_var' has shape {None if given is None else list(given.shape)}; expected [1]"
            )
        await self.worker.run(call, self.worker.critic.save)
        return {"status": np.zeros(1, np.int64)}


def critic_loaders(
    load: Callable[[ModelMetrics], tuple[Critic, InputReader]], rewarding: Rewarding | None
) -> dict[str, Callable[[ModelMetrics], Model]]:
    """Returns what `ModelRegistry` loads the three models with; they share one critic.

    Args:
      load: makes the critic, and what reads for it.
      rewarding: the reward model, to answer rewards beside the values; None without.
    """
    made: list[tuple[CriticWorker, InputReader]] = []
    names: set[str] = set()

    def loader(
        name: str, make: Callable[[CriticWorker, ModelMetrics, InputReader], Model]
    ) -> Callable[[ModelMetrics], Model]:
        def once(metrics: ModelMetrics) -> Model:
            if name in names:
                raise InputError(f"{name} is trained here and cannot be loaded anew; start the server again")
            names.add(name)
            if not made:
                critic, reader = load(metrics)
                made.append((CriticWorker(critic, metrics), reader))
            worker, reader = made[0]
            return make(worker, metrics, reader)

        return once

    return {
        "critic_infer": loader("critic_infer", lambda *given: CriticInfer(*given, rewarding)),
        "critic_train": loader("critic_train", CriticTrain),
        "critic_save": loader("critic_save", lambda worker, metrics, _: CriticSave(worker, metrics)),
    }
