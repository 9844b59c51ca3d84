"""Conversion between tensors of gRPC messages and NumPy arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from rmjax.serving.errors import RequestError
from rmjax.serving.protocol import DATATYPES, Arrays, Tensor, check_input, decode_raw, object_array, reshape

_FIELDS = {"BYTES": "bytes", "INT64": "int64", "INT32": "int", "FP32": "fp32", "BOOL": "bool"}  # of typed contents
_NAMES = {dtype: name for name, (dtype, _) in DATATYPES.items()}


def read_inputs(request: service_pb2.ModelInferRequest, expected: Mapping[str, Tensor]) -> Arrays:
    """Returns a request's input tensors, from raw or typed contents.

    Raises:
      RequestError: a tensor is unknown, duplicated, of another datatype, or its contents do not match its shape.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise RequestError(
            f"{len(request.inputs)} inputs {[tensor.name for tensor in request.inputs]} but "
            f"{len(raw)} raw_input_contents; expected one each"
        )
    found: Arrays = {}
    for i, tensor in enumerate(request.inputs):
        name, shape = tensor.name, tuple(tensor.shape)
        check_input(name, tensor.datatype, shape, expected, found)
        if raw and tensor.HasField("contents"):
            raise RequestError(
                f"tensor {name!r} has contents, and the request has raw_input_contents; expected one kind"
            )
        values = decode_raw(name, tensor.datatype, raw[i]) if raw else _typed_contents(tensor)
        found[name] = reshape(name, values, shape)
    return found


def _typed_contents(tensor: service_pb2.ModelInferRequest.InferInputTensor) -> np.ndarray:
    values = getattr(tensor.contents, f"{_FIELDS[tensor.datatype]}_contents")
    return object_array(list(values)) if tensor.datatype == "BYTES" else np.array(values, DATATYPES[tensor.datatype][0])


def read_parameters(request: service_pb2.ModelInferRequest) -> dict[str, Any]:
    """Returns a request's parameters as {name: value}."""
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "", None)
        for name, value in request.parameters.items()
    }


def add_output(response: service_pb2.ModelInferResponse, name: str, values: np.ndarray) -> None:
    """Adds a tensor to a response, as raw contents."""
    response.outputs.add(name=name, datatype=_NAMES[values.dtype], shape=values.shape)
    response.raw_output_contents.append(values.tobytes())
