"""Tensors of the Open Inference Protocol's gRPC messages, as arrays and back."""

import math
import struct

import numpy as np
from tritonclient.grpc import service_pb2

from rmjax.serving.engine import RequestError

# Protocol's datatype: (NumPy's, the field of typed contents)
_DATATYPES = {
    "BYTES": (np.object_, "bytes_contents"),
    "INT64": (np.dtype("<i8"), "int64_contents"),
    "FP32": (np.dtype("<f4"), "fp32_contents"),
}


def read_inputs(request: service_pb2.ModelInferRequest, expected: dict[str, str]) -> dict[str, np.ndarray]:
    """Returns a request's input tensors, from raw or typed contents.

    Args:
      expected: {name: datatype} of the tensors that the model takes.

    Raises:
      RequestError: a tensor is unknown, given twice, of another datatype, or its contents do not fit its shape.
    """
    if request.raw_input_contents and len(request.raw_input_contents) != len(request.inputs):
        raise RequestError(f"{len(request.inputs)} inputs {[tensor.name for tensor in request.inputs]} but "
                           f"{len(request.raw_input_contents)} raw_input_contents; expected one each")  # fmt: skip
    found: dict[str, np.ndarray] = {}
    for i, tensor in enumerate(request.inputs):
        name, shape = tensor.name, tuple(tensor.shape)
        if name not in expected:
            raise RequestError(f"unknown tensor {name!r}; this model takes {', '.join(expected)}")
        if name in found:
            raise RequestError(f"tensor {name!r} is given twice; expected once")
        if tensor.datatype != expected[name]:
            raise RequestError(f"tensor {name!r} has datatype {tensor.datatype!r}; expected {expected[name]}")
        if any(size < 0 for size in shape):
            raise RequestError(f"tensor {name!r} has shape {list(shape)}; sizes are not negative")
        if request.raw_input_contents:
            values = _read_raw(name, tensor.datatype, request.raw_input_contents[i])
        else:
            dtype, field = _DATATYPES[tensor.datatype]
            values = np.array(getattr(tensor.contents, field), dtype)
        if values.size != math.prod(shape):
            raise RequestError(f"tensor {name!r} has shape {list(shape)}, which is {math.prod(shape)} elements, but "
                               f"its contents hold {values.size}")  # fmt: skip
        found[name] = values.reshape(shape)
    return found


def _read_raw(name: str, datatype: str, raw: bytes) -> np.ndarray:
    dtype, _ = _DATATYPES[datatype]
    if datatype != "BYTES":
        if len(raw) % dtype.itemsize:
            raise RequestError(f"tensor {name!r} has {len(raw)} raw bytes; expected a multiple of {dtype.itemsize}, "
                               f"the size of {datatype}")  # fmt: skip
        return np.frombuffer(raw, dtype)
    # Each element is its length as a little-endian uint32, then its bytes.
    values, at = [], 0
    while at < len(raw):
        length = struct.unpack_from("<I", raw, at)[0] if at + 4 <= len(raw) else math.inf
        if at + 4 + length > len(raw):
            raise RequestError(f"tensor {name!r} has {len(raw)} raw bytes that end within element {len(values)}; "
                               "expected each element as a 4-byte little-endian length and its bytes")  # fmt: skip
        values.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    array = np.empty(len(values), np.object_)
    array[:] = values
    return array


def add_output(response: service_pb2.ModelInferResponse, name: str, values: np.ndarray) -> None:
    """Adds a float32 tensor to a response, as raw contents."""
    response.outputs.add(name=name, datatype="FP32", shape=values.shape)
    response.raw_output_contents.append(np.ascontiguousarray(values, _DATATYPES["FP32"][0]).tobytes())
