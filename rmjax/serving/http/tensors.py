"""Inference requests and responses of the Open Inference Protocol over HTTP: JSON and the binary tensor extension."""

import itertools
import reprlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from rmjax.serving.errors import RequestError
from rmjax.serving.http.decoding import decode
from rmjax.serving.http.schemas import InferBody, InferResponse, OutputTensor
from rmjax.serving.protocol import DATATYPES, VERSION, Arrays, Tensor, check_input, decode_raw, object_array, reshape

LENGTH_HEADER = "inference-header-content-length"
_NAMES = {dtype: name for name, (dtype, _) in DATATYPES.items()}
_SIZE = "binary_data_size"
# Datatype: (Python types of its JSON elements, name of the elements)
_JSON_TYPES: dict[str, tuple[set[type], str]] = {
    "BYTES": ({str}, "strings"),
    "INT64": ({int}, "integers"),
    "INT32": ({int}, "integers"),
    "FP32": ({int, float}, "numbers"),
    "BOOL": ({bool}, "true or false"),
}


def read_infer(body: bytes, header_length: str, expected: Mapping[str, Tensor]) -> tuple[InferBody, Arrays]:
    """Returns the JSON of an inference request and its input tensors; binary ones follow the JSON in their order.

    Args:
      header_length: bytes of the JSON as a decimal number; empty if the body is JSON only.
      expected: the model's inputs.

    Raises:
      RequestError: the body is invalid; names the tensor or field.
    """
    end = len(body)
    if header_length:
        # int() alone accepts signs, underscores and the digits of all scripts.
        decimal = header_length.isascii() and header_length.isdigit() and len(header_length) < 16
        if not decimal or (end := int(header_length)) > len(body):
            raise RequestError(
                f"the header Inference-Header-Content-Length is {header_length:.40}; expected the number of bytes of "
                f"the JSON part, at most {len(body)}, the size of the body"
            )
    view = memoryview(body)
    parsed = decode(view[:end], InferBody)
    tensors: Arrays = {}
    for tensor in parsed.inputs:
        name, parameters = tensor.name, tensor.parameters or {}
        check_input(name, tensor.datatype, tensor.shape, expected, tensors)
        if _SIZE in parameters:
            size, left = parameters[_SIZE], len(body) - end
            if tensor.data is not msgspec.UNSET:
                raise RequestError(f"tensor {name!r} has both 'data' and {_SIZE!r}; expected one")
            if type(size) is not int or not 0 <= size <= left:
                raise RequestError(
                    f"tensor {name!r} has {_SIZE} {size!s:.40}; expected 0 to {left}, the bytes left of the body"
                )
            values = decode_raw(name, tensor.datatype, view[end : end + size])
            end += size
        elif parameters:
            raise RequestError(
                f"tensor {name!r} has the parameters {sorted(parameters)!s:.80}; expected only {_SIZE!r}"
            )
        elif tensor.data is msgspec.UNSET:
            raise RequestError(f"tensor {name!r} has no 'data'; expected an array, or the parameter {_SIZE!r}")
        else:
            values = _from_json(name, tensor.datatype, tensor.data)
        tensors[name] = reshape(name, values, tensor.shape)
    if end != len(body):
        raise RequestError(
            f"the last {len(body) - end} of {len(body)} bytes of the body belong to no tensor; expected as many bytes "
            f"after the JSON as the sum of {_SIZE}"
        )
    if type(binary := (parsed.parameters or {}).get("binary_data_output")) not in (bool, type(None)):
        raise RequestError(f"parameter 'binary_data_output' is {binary!s:.60}; expected true or false")
    for output in parsed.outputs or []:
        if output.parameters and output.parameters.classification != 0:
            raise RequestError(
                f"output {output.name!r:.80} has the parameter 'classification', which is not supported; omit it"
            )
    return parsed, tensors


def _from_json(name: str, datatype: str, data: list[Any]) -> np.ndarray:
    """Returns the flat values of a tensor's JSON `data`, which may be flat or nested."""
    allowed, elements = _JSON_TYPES[datatype]
    expected = f"expected {elements}, flat or nested as the shape"
    if datatype == "BYTES":
        texts: list[str] = []
        pending: list[Any] = [data]
        while pending:
            value = pending.pop()
            if isinstance(value, list):
                pending.extend(reversed(value))
            elif isinstance(value, str):
                texts.append(value)
            else:
                raise RequestError(f"tensor {name!r} holds {reprlib.repr(value)}; {expected}")
        try:
            return object_array([text.encode() for text in texts])
        except UnicodeEncodeError as error:  # JSON can represent lone surrogates
            raise RequestError(
                f"tensor {name!r} is not Unicode text ({error.reason}); remove the character "
                f"{error.object[error.start]!a}"
            ) from error
    # Types are checked before NumPy sees the values: one long string among short ones would allocate a huge array.
    while (types := set(map(type, data))) == {list}:
        if len(set(map(len, data))) > 1:
            raise RequestError(f"tensor {name!r} holds lists of different lengths; {expected}: pad them")
        data = list(itertools.chain.from_iterable(data))
    if not types <= allowed:
        value = next(value for value in data if type(value) not in allowed)
        raise RequestError(f"tensor {name!r} holds {reprlib.repr(value)}, which is not {datatype}; {expected}")
    try:
        return np.array(data, DATATYPES[datatype][0])
    except OverflowError as error:
        raise RequestError(f"tensor {name!r} holds a number that is not {datatype}: it is too large") from error


def write_infer(
    parsed: InferBody, model: str, outputs: Arrays, notes: Mapping[str, str] | None = None
) -> tuple[bytes, int | None]:
    """Returns the body of the response, and the bytes of its JSON if binary data follow; `notes` are its parameters."""
    default = (parsed.parameters or {}).get("binary_data_output") or False
    binary = {output.name: output.parameters and output.parameters.binary_data for output in parsed.outputs or []}
    tensors, contents = [], []
    for name, values in outputs.items():
        tensor = OutputTensor(name, _NAMES[values.dtype], list(values.shape))
        if default if binary.get(name) is None else binary[name]:
            contents.append(values.tobytes())
            tensor.parameters = {_SIZE: len(contents[-1])}
        else:
            tensor.data = values.ravel().tolist()
        tensors.append(tensor)
    parameters = dict(notes) if notes else msgspec.UNSET
    header = msgspec.json.encode(InferResponse(model, VERSION, tensors, parsed.id or msgspec.UNSET, parameters))
    return b"".join((header, *contents)), len(header) if contents else None
