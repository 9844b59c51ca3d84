"""The Open Inference Protocol v2 independent of its transport: tensors, parameters, metadata.

Axis letters: B sequences of a request; the other axes depend on the model.
"""

import dataclasses
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rmjax.serving.errors import RequestError
from rmjax.serving.metrics import ModelMetrics

VERSION = "1"  # of every model
# Datatype of the protocol: (NumPy dtype, name in Triton's model configuration)
DATATYPES = {
    "BYTES": (np.dtype(object), "TYPE_STRING"),
    "INT64": (np.dtype("<i8"), "TYPE_INT64"),
    "INT32": (np.dtype("<i4"), "TYPE_INT32"),
    "FP32": (np.dtype("<f4"), "TYPE_FP32"),
    "BOOL": (np.dtype(bool), "TYPE_BOOL"),
}
# Request parameter: (type, description)
PARAMETERS = {
    "truncate": (bool, "cut sequences longer than the model's maximum at their end instead of refusing them"),
    "close": (bool, "alias of add_eos"),
    "add_eos": (bool, "tokenize strings with the special tokens and the end-of-sequence token, as in training"),
    "timeout": (int, "microseconds until the deadline; 0: none"),
}
_TYPE_NAMES = {bool: "bool (JSON true or false)", int: "int"}
_IGNORED_PARAMETERS = {"sequence_id", "sequence_start", "sequence_end", "priority", "binary_data_output"}  # Triton's
_MAX_AXIS, _MAX_TIMEOUT = 1 << 31, 1 << 53  # elements; microseconds
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a model; a size of -1 varies between requests."""

    datatype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(slots=True)
class Call:
    """Client, deadline and text options of a request.

    Attributes:
      client: key of the client in the queue.
      deadline: on the event loop's clock, in seconds.
      add_eos: tokenize strings with the tokenizer's special tokens and a final EOS, as in training.
      truncate: the end at which an overlong sequence may be cut: `right`, `left`, or empty for neither.
      limit: tokens above which a sequence is cut; 0: the model's maximum.
      notes: parameters of the response, which the model sets: `left_out`, what the chat template left out.
    """

    client: str = ""
    deadline: float = math.inf
    add_eos: bool = False
    truncate: str = ""
    limit: int = 0
    notes: dict[str, str] = dataclasses.field(default_factory=dict)


class Model(Protocol):
    """The interface of a model to the gRPC and HTTP frontends."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    max_batch_size: int  # 0: the first axis of its tensors is not a batch axis
    metrics: ModelMetrics

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The model card."""

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""

    async def infer(self, tensors: Arrays, call: Call) -> Arrays:
        """Returns the outputs for a request's inputs."""

    async def start(self) -> None:
        """Warms up; ready from then on."""

    async def close(self) -> None:
        """Answers queued requests, then releases all resources."""


def read_call(parameters: Mapping[str, Any], client: str, now: float, time_left: float | None) -> Call:
    """Returns the client, deadline and text options of a request.

    Args:
      parameters: those of the request (`PARAMETERS`).
      now: the event loop's time, in seconds.
      time_left: seconds until the transport's deadline; None if it has none.

    Raises:
      RequestError: a parameter is unknown or of another type.
    """
    for name, value in parameters.items():
        if name not in PARAMETERS and name not in _IGNORED_PARAMETERS:
            raise RequestError(f"unknown parameter {name!r:.80}; expected {', '.join(PARAMETERS)}")
        if name in PARAMETERS and type(value) is not (kind := PARAMETERS[name][0]):
            raise RequestError(f"parameter {name!r} is {value!r:.60}; expected {_TYPE_NAMES[kind]}")
    seconds = [time_left] if time_left is not None else []
    if (timeout := parameters.get("timeout", 0)) > 0:
        seconds.append(min(timeout, _MAX_TIMEOUT) / 1e6)
    deadline = now + min(seconds, default=math.inf)
    add_eos = any(parameters.get(name, False) for name in ("add_eos", "close"))
    return Call(client, deadline, add_eos, "right" if parameters.get("truncate", False) else "")


def check_input(name: str, datatype: str, shape: Sequence[int], expected: Mapping[str, Tensor], found: Arrays) -> None:
    """Raises RequestError unless the model has this input and `found` does not contain it yet."""
    if name not in expected:
        raise RequestError(f"unknown tensor {name!r:.80}; the model's inputs are {', '.join(expected)}")
    if name in found:
        raise RequestError(f"tensor {name!r} is given twice; expected once")
    if datatype != expected[name].datatype:
        raise RequestError(f"tensor {name!r} has datatype {datatype!r:.40}; expected {expected[name].datatype}")
    axes = len(expected[name].shape)
    if len(shape) > 2 * axes or any(not 0 <= size < _MAX_AXIS for size in shape):
        raise RequestError(
            f"tensor {name!r} has {len(shape)} axes, of sizes {list(shape[: 2 * axes])!s:.60}; expected {axes} axes, "
            f"of sizes that are not negative and below {_MAX_AXIS}"
        )


def reshape(name: str, values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Returns a tensor's flat values in its shape; raises RequestError if their number differs."""
    if values.size != (size := math.prod(shape)):
        raise RequestError(
            f"tensor {name!r} has shape {list(shape)}, which is {size} elements, but its contents hold {values.size}; "
            "make shape and contents agree"
        )
    return values.reshape(shape)


def decode_raw(name: str, datatype: str, raw: bytes | memoryview) -> np.ndarray:
    """Returns the flat values of raw contents; a BYTES element is its length as little-endian uint32, then its bytes.

    Raises:
      RequestError: the contents end within an element.
    """
    dtype, _ = DATATYPES[datatype]
    if datatype != "BYTES":
        if len(raw) % dtype.itemsize:
            raise RequestError(
                f"tensor {name!r} has {len(raw)} raw bytes; expected a multiple of {dtype.itemsize}, "
                f"the size of {datatype}"
            )
        return np.frombuffer(raw, dtype)
    values: list[bytes] = []
    at = 0
    while at < len(raw):
        begin = at + 4
        at = begin + struct.unpack_from("<I", raw, at)[0] if begin <= len(raw) else begin
        if at > len(raw):
            raise RequestError(
                f"tensor {name!r} has {len(raw)} raw bytes that end within element {len(values)}; "
                "expected each element as a 4-byte little-endian length and its bytes"
            )
        values.append(bytes(raw[begin:at]))
    return object_array(values)


def object_array(values: Sequence[bytes]) -> np.ndarray:
    """Returns a flat array of BYTES elements."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def check_outputs(names: Iterable[str], model: Model) -> None:
    """Raises RequestError if a request names an unknown output: called before any computation."""
    for name in names:
        if name not in model.outputs:
            raise RequestError(
                f"unknown output tensor {name!r:.80}; the model's outputs are {', '.join(model.outputs)}"
            )


def select_outputs(names: Sequence[str], outputs: Arrays) -> Arrays:
    """Returns the outputs that a request names; all if it names none."""
    return {name: outputs[name] for name in names} if names else outputs


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
    """Returns a model's configuration as Triton's JSON, for PyTriton's clients."""
    skip = 1 if model.max_batch_size else 0
    tensors = lambda side: [
        {"name": n, "data_type": DATATYPES[t.datatype][1], "dims": list(t.shape[skip:])} for n, t in side.items()
    ]
    return {
        "name": name,
        "platform": "jax",
        "backend": "rmjax",
        "max_batch_size": model.max_batch_size,
        "version_policy": {"latest": {"num_versions": 1}},
        "input": [tensor | {"optional": len(model.inputs) > 1} for tensor in tensors(model.inputs)],
        "output": tensors(model.outputs),
        "parameters": {"metadata": {"string_value": json.dumps(dict(model.metadata))}},
    }
