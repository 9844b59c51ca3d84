"""The served models `critic_infer`, `critic_train` and `critic_save`, compatible with NeMo-Aligner's PPO.

Axis letters: B sequences of a request, S tokens of the padded sequences.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rmjax.core.errors import InputError, non_finite_error
from rmjax.serving.engine.queue import check_sequence
from rmjax.serving.errors import DeadlineExceeded, NotFinite, Overloaded, RequestError, Unavailable
from rmjax.serving.metrics import ModelMetrics
from rmjax.serving.protocol import Arrays, Call, Model, Tensor
from rmjax.serving.services.critic_state import CLIP_RANGE, Critic
from rmjax.serving.services.inputs import EXCEEDED, INPUTS, TOKENS, InputReader
from rmjax.serving.services.reward import RewardService

_MAX_QUEUED = 64  # requests
_MAX_BATCH = 16384  # sequences per request
_PORTS = (
    "one port serves the reward model and the critic: set NeMo-Aligner's remote_critic_rm.reward_model.port (5555) and "
    "remote_critic_rm.critic.port (5556) to this server's HTTP port"
)
_TARGETS = dict.fromkeys(("returns", "prev_values", "mask"), Tensor("FP32", (-1, -1)))

Acquire = Callable[[], contextlib.AbstractContextManager[Model]]  # `ModelRegistry.acquire` of one model


class CriticWorker:
    """A worker thread that runs the critic's requests one at a time, so each sees the updates of those before it."""

    def __init__(self, critic: Critic, metrics: ModelMetrics):
        self.critic, self.ready, self._metrics = critic, False, metrics
        self._lock, self._queued = asyncio.Lock(), 0
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="critic")

    async def start(self) -> None:
        """Warms up, once for all models that share the worker."""
        async with self._lock:
            if not self.ready:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._thread, self.critic.warm_up)
                await loop.run_in_executor(self._thread, self._metrics.count_compilations)
                self.ready = True

    async def run(self, call: Call, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns `function(*arguments)`, run after the requests queued before; a cancelled request is not run.

        Raises:
          Overloaded, Unavailable, DeadlineExceeded: see `rmjax.serving.errors`.
        """
        if not self.ready:
            raise Unavailable("the critic is still warming up, or the server is draining")
        if self._queued >= _MAX_QUEUED:
            raise Overloaded(f"{self._queued} requests are queued for the critic, the maximum: retry later")
        self._queued += 1
        try:
            async with asyncio.timeout_at(call.deadline if call.deadline < math.inf else None):
                await self._lock.acquire()
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed while the request was queued for the critic") from None
        finally:
            self._queued -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
        finally:
            self._lock.release()

    async def close(self) -> None:
        """Completes the running request, and stops the thread."""
        async with self._lock:
            self.ready = False
        self._thread.shutdown()


class _CriticModel:
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    max_batch_size = 0

    def __init__(self, worker: CriticWorker, reader: InputReader, metrics: ModelMetrics):
        self.worker, self.reader, self.metrics = worker, reader, metrics

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The critic's hyperparameters, and the step of its latest checkpoint, None if there is none."""
        critic = self.worker.critic
        return {
            "max_length": critic.row_length,
            "clip_range": CLIP_RANGE,
            "learning_rate": critic.learning_rate,
            "checkpoint_step": critic.checkpoint_step,
            "ports": _PORTS,
        }

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return self.worker.ready

    async def start(self) -> None:
        """Warms up; requests are accepted from then on."""
        await self.worker.start()

    async def close(self) -> None:
        """Completes the running request, and stops the threads."""
        await self.worker.close()
        self.reader.close()


class CriticInfer(_CriticModel):
    """Values of every token, and rewards if a reward model is combined with the critic."""

    inputs: Mapping[str, Tensor] = INPUTS
    max_batch_size = _MAX_BATCH

    def __init__(self, worker: CriticWorker, reader: InputReader, metrics: ModelMetrics, reward_model: Acquire | None):
        super().__init__(worker, reader, metrics)
        self._reward_model = reward_model
        self.outputs = {"values": Tensor("FP32", (-1, -1)), "exceeded": EXCEEDED}
        if reward_model is not None:
            self.outputs["rewards"] = Tensor("FP32", (-1, 1))

    async def infer(self, tensors: Arrays, call: Call) -> Arrays:
        """Returns `values` float32 [B, S], 0 after a sequence's end, and `exceeded` int32 [B, 1], 1 if truncated.

        If combined with a reward model, also `rewards` float32 [B, 1].
        """
        source, conversations, call = self.reader.parse(tensors, call)
        sequences, exceeded = await self.reader.tokenize(conversations, source, call)
        arrays = [check_sequence(row, s, source, self.worker.critic.row_length) for row, s in enumerate(sequences)]
        found = await self.worker.run(call, self.worker.critic.values, arrays)
        width = tensors["tokens"].shape[1] if source == TOKENS else max(map(len, found))
        values = np.zeros((len(found), width), np.float32)
        for row, one in enumerate(found):
            values[row, : len(one)] = one
        if message := non_finite_error("values", values, "use a lower --critic_learning_rate"):
            raise NotFinite(message)
        outputs = {"values": values, "exceeded": exceeded[:, None].astype(np.int32)}
        if self._reward_model is None:
            return outputs
        with self._reward_model() as model:
            if not isinstance(model, RewardService) or len(model.attributes) != 1:
                raise RequestError(
                    "the reward model that --combine_rm_and_critic combines with critic_infer has several attributes; "
                    "expected one: restart the server without that flag, and request rewards from the reward model"
                )
            for row, tokens in enumerate(arrays):
                model.reader.check_tokens(source.row(row), tokens)
            if source != TOKENS:
                arrays = [model.reader.complete(tokens) for tokens in arrays]
            return outputs | {"rewards": (await model.score(arrays, source, call)).rewards}


class CriticTrain(_CriticModel):
    """One optimizer step per request; a request repeated because its response was lost is a second step."""

    inputs: Mapping[str, Tensor] = {"tokens": Tensor("INT64", (-1, -1))} | _TARGETS
    outputs: Mapping[str, Tensor] = {"loss_mean": Tensor("FP32", (1,))}

    async def infer(self, tensors: Arrays, call: Call) -> Arrays:
        """Trains on `tokens` [B, S] with `returns`, `prev_values` and `mask` [B, S - 1]; returns `loss_mean` [1]."""
        if missing := set(self.inputs) - set(tensors):
            raise RequestError(f"the request lacks the tensors {sorted(missing)}; expected {', '.join(self.inputs)}")
        tokens = tensors["tokens"]
        if tokens.ndim != 2 or not len(tokens):
            raise RequestError(f"tensor 'tokens' has shape {list(tokens.shape)}; expected [B, S] with B at least 1")
        for name in _TARGETS:
            if tensors[name].shape != (expected := (len(tokens), tokens.shape[1] - 1)):
                shape = list(tensors[name].shape)
                of_tokens = f"[B, S - 1] for 'tokens' of shape {list(tokens.shape)}"
                raise RequestError(f"tensor {name!r} has shape {shape}; expected {list(expected)}, {of_tokens}")
            if name == "mask" and (tensors[name] < 0).any():
                row, column = np.argwhere(tensors[name] < 0)[0]
                raise RequestError(
                    f"tensor 'mask', row {row}, column {column} is {tensors[name][row, column]}; expected 1 at tokens "
                    "of the loss, else 0"
                )
            if message := non_finite_error(name, tensors[name], "send finite values, also where 'mask' is 0"):
                raise RequestError(f"tensor {message}")
        targets = np.stack([tensors[name] for name in _TARGETS], axis=-1)
        sequences, kept = [], []
        for row in range(len(tokens)):
            # Tokens after the last one with a mask do not affect the loss; rows without any are padding.
            if (masked := np.flatnonzero(tensors["mask"][row])).size:
                sequence = self.reader.check_tokens(TOKENS.row(row), tokens[row, : masked[-1] + 1])
                sequences.append(check_sequence(row, sequence, TOKENS, self.worker.critic.row_length))
                kept.append(targets[row, : masked[-1] + 1])
        loss = await self.worker.run(call, self.worker.critic.train, sequences, kept) if sequences else 0.0
        output = np.array([loss], np.float32)
        if message := non_finite_error("loss_mean", output, "no step was taken; use a lower --critic_learning_rate"):
            raise NotFinite(message)
        return {"loss_mean": output}


class CriticSave(_CriticModel):
    """One checkpoint per request."""

    inputs: Mapping[str, Tensor] = {"dummy_var": Tensor("INT64", (1,))}
    outputs: Mapping[str, Tensor] = {"status": Tensor("INT64", (1,))}

    async def infer(self, tensors: Arrays, call: Call) -> Arrays:
        """Returns `status` [1] = 0 once the checkpoint is complete; `dummy_var` [1] is not used."""
        if (given := tensors.get("dummy_var")) is None:
            raise RequestError("the request lacks the tensor 'dummy_var'; expected INT64 of shape [1], of any value")
        if given.size != 1:
            raise RequestError(f"tensor 'dummy_var' has shape {list(given.shape)}; expected [1]")
        await self.worker.run(call, self.worker.critic.save)
        return {"status": np.zeros(1, np.int64)}


def critic_loaders(
    load: Callable[[ModelMetrics], tuple[Critic, InputReader]], reward_model: Acquire | None
) -> dict[str, Callable[[ModelMetrics], Model]]:
    """Returns `ModelRegistry`'s loaders of the three models, which share one critic.

    Args:
      load: returns the critic and its input reader.
      reward_model: combined with `critic_infer`; None for values only.
    """
    shared: list[tuple[CriticWorker, InputReader]] = []
    loaded: set[str] = set()

    def load_once(make: Callable[[CriticWorker, InputReader, ModelMetrics], Model], metrics: ModelMetrics) -> Model:
        if metrics.model in loaded:
            raise InputError(f"{metrics.model} is being trained and cannot be loaded anew; restart the server")
        loaded.add(metrics.model)
        if not shared:
            critic, reader = load(metrics)
            shared.append((CriticWorker(critic, metrics), reader))
        return make(*shared[0], metrics)

    return {
        "critic_infer": functools.partial(load_once, functools.partial(CriticInfer, reward_model=reward_model)),
        "critic_train": functools.partial(load_once, CriticTrain),
        "critic_save": functools.partial(load_once, CriticSave),
    }
