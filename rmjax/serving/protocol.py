"""The Open Inference Protocol v2 apart from its two encodings: requests, tensors, descriptions.

Axis letters: B sequences of a request; the other axes are the models' own.
"""

import dataclasses
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rmjax.serving.errors import RequestError
from rmjax.serving.metrics import ModelMetrics

VERSION = "1"  # of every model
# Protocol's datatype: (NumPy's, the name in Triton's model configuration)
DATATYPES = {
    "BYTES": (np.dtype(object), "TYPE_STRING"),
    "INT64": (np.dtype("<i8"), "TYPE_INT64"),
    "INT32": (np.dtype("<i4"), "TYPE_INT32"),
    "FP32": (np.dtype("<f4"), "TYPE_FP32"),
    "BOOL": (np.dtype(bool), "TYPE_BOOL"),
}
# What tritonclient may send without meaning anything to a reward model.
_WITHOUT_MEANING = {"sequence_id", "sequence_start", "sequence_end", "priority", "binary_data_output"}
_PARAMETERS = {"truncate": bool, "close": bool, "add_eos": bool, "timeout": int}
_LONGEST_AXIS, _LONGEST_TIMEOUT = 1 << 31, 1 << 53  # elements; microseconds
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that a model takes or gives; -1 is a size that the client chooses."""

    datatype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """Who asks, until when, and how texts are to be taken.

    Attributes:
      client: whose turn it is in the queue.
      deadline: as of the event loop's clock.
      add_eos: give strings the tokenizer's special tokens and a closing EOS, as in training.
      truncate: which end of an overlong sequence may be cut: `right`, `left`, or none.
      limit: tokens from which on it is cut; 0: what the model takes.
    """

    client: str = ""
    deadline: float = math.inf
    add_eos: bool = False
    truncate: str = ""
    limit: int = 0


class Model(Protocol):
    """What the faces know of a model."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    max_batch_size: int  # 0: the first axis of its tensors is no batch
    metadata: Mapping[str, Any]
    metrics: ModelMetrics
    ready: bool

    async def infer(self, tensors: Arrays, call: Call) -> Arrays:
        """Returns the outputs to a request's inputs."""

    async def start(self) -> None:
        """Warms up; ready from then on."""

    async def close(self) -> None:
        """Answers the requests that wait, and ends."""


def read_call(parameters: Mapping[str, Any], client: str, now: float, time_left: float | None) -> Call:
    """Returns what a request's parameters say: `truncate`, `close` and `timeout` (microseconds, as Triton has it).

    Args:
      now: of the event loop's clock.
      time_left: seconds that the transport grants; None where it sets no deadline.

    Raises:
      RequestError: a parameter is unknown or of another type.
    """
    for name, value in parameters.items():
        if name not in _PARAMETERS and name not in _WITHOUT_MEANING:
            raise RequestError(f"unknown parameter {name!r}; this server knows {', '.join(_PARAMETERS)}")
        if name in _PARAMETERS and type(value) is not _PARAMETERS[name]:
            raise RequestError(f"parameter {name!r} is {value!r:.60}; expected {_PARAMETERS[name].__name__}")
    seconds = [time_left] if time_left is not None else []
    if (timeout := parameters.get("timeout", 0)) > 0:
        seconds.append(min(timeout, _LONGEST_TIMEOUT) / 1e6)
    truncate = "right" if parameters.get("truncate", False) else ""
    return Call(
        client,
        now + min(seconds, default=math.inf),
        any(parameters.get(name, False) for name in ("add_eos", "close")),
        truncate,
    )


def check_input(name: str, datatype: str, shape: Sequence[int], expected: Mapping[str, Tensor], found: Arrays) -> None:
    """Raises RequestError unless the model takes this tensor and it is not among those found already."""
    if name not in expected:
        raise RequestError(f"unknown tensor {name!r:.80}; this model takes {', '.join(expected)}")
    if name in found:
        raise RequestError(f"tensor {name!r} is given twice; expected once")
    if datatype != expected[name].datatype:
        raise RequestError(f"tensor {name!r} has datatype {datatype!r:.40}; expected {expected[name].datatype}")
    axes = len(expected[name].shape)
    if len(shape) > 2 * axes or any(not 0 <= size < _LONGEST_AXIS for size in shape):
        raise RequestError(
            f"tensor {name!r} has {len(shape)} axes, of sizes {list(shape[: 2 * axes])!s:.60}; expected "
            f"{axes}, not negative and below {_LONGEST_AXIS} each"
        )


def shaped(name: str, values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Returns a tensor's flat values in its shape.

    Raises:
      RequestError: they are more or fewer.
    """
    if values.size != math.prod(shape):
        raise RequestError(
            f"tensor {name!r} has shape {list(shape)}, which is {math.prod(shape)} elements, but its "
            f"contents hold {values.size}"
        )
    return values.reshape(shape)


def from_raw(name: str, datatype: str, raw: bytes | memoryview) -> np.ndarray:
    """Returns the flat values of raw contents; an element of BYTES is a little-endian uint32 length and its bytes.

    Raises:
      RequestError: they are not whole elements.
    """
    dtype, _ = DATATYPES[datatype]
    if datatype != "BYTES":
        if len(raw) % dtype.itemsize:
            raise RequestError(
                f"tensor {name!r} has {len(raw)} raw bytes; expected a multiple of {dtype.itemsize}, "
                f"the size of {datatype}"
            )
        return np.frombuffer(raw, dtype)
    values, at = [], 0
    while at < len(raw):
        length = struct.unpack_from("<I", raw, at)[0] if at + 4 <= len(raw) else math.inf
        if at + 4 + length > len(raw):
            raise RequestError(
                f"tensor {name!r} has {len(raw)} raw bytes that end within element {len(values)}; "
                "expected each element as a 4-byte little-endian length and its bytes"
            )
        values.append(bytes(raw[at + 4 : at + 4 + length]))
        at += 4 + length
    return objects(values)


def objects(values: Sequence[bytes]) -> np.ndarray:
    """Returns a flat array of BYTES."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def check_outputs(wanted: Iterable[str], model: Model) -> None:
    """Raises RequestError if a request names an output that the model does not give: before any work is done."""
    for name in wanted:
        if name not in model.outputs:
            raise RequestError(f"unknown output tensor {name!r:.80}; this model gives {', '.join(model.outputs)}")


def chosen_outputs(wanted: Sequence[str], given: Arrays) -> Arrays:
    """Returns the outputs that a request names, or all where it names none."""
    return {name: given[name] for name in wanted} if wanted else given


def model_metadata(name: str, model: Model) -> dict[str, Any]:
    """Returns a model's metadata as the protocol's JSON; `parameters` are the model card."""
    tensors = lambda side: [{"name": n, "datatype": t.datatype, "shape": list(t.shape)} for n, t in side.items()]
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "jax",
        "inputs": tensors(model.inputs),
        "outputs": tensors(model.outputs),
        "parameters": dict(model.metadata),
    }


def model_configuration(name: str, model: Model) -> dict[str, Any]:
    """Returns a model's configuration as Triton's JSON, which PyTriton's clients read."""
    skip = 1 if model.max_batch_size else 0
    tensors = lambda side: [
        {"name": n, "data_type": DATATYPES[t.datatype][1], "dims": list(t.shape[skip:])} for n, t in side.items()
    ]
    inputs = [tensor | {"optional": len(model.inputs) > 1} for tensor in tensors(model.inputs)]
    return {
        "name": name,
        "platform": "jax",
        "backend": "rmjax",
        "max_batch_size": model.max_batch_size,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": inputs,
        "output": tensors(model.outputs),
    }
