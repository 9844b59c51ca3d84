"""Tensors of the Open Inference Protocol's HTTP messages: JSON, and the binary tensor extension."""

import dataclasses
import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmjax.serving.errors import RequestError
from rmjax.serving.protocol import DATATYPES, VERSION, Arrays, Tensor, check_input, from_raw, objects, shaped

LENGTH_HEADER = "inference-header-content-length"
_NAMES = {dtype: name for name, (dtype, _) in DATATYPES.items()}
_BINARY_SIZE, _BINARY = "binary_data_size", "binary_data"
_KINDS = {"INT64": {int}, "INT32": {int}, "FP32": {int, float}, "BOOL": {bool}}  # of JSON's values that fit


@dataclasses.dataclass(frozen=True)
class InferRequest:
    """A request as its body says it.

    Attributes:
      outputs: {name: whether it is wanted as binary data}; empty asks for all.
      binary: whether outputs are binary where nothing is said of them.
    """

    id: str
    tensors: Arrays
    outputs: dict[str, bool]
    binary: bool
    parameters: dict[str, Any]


def parse_json(body: bytes | memoryview) -> dict[str, Any]:
    """Returns a body's JSON object.

    Raises:
      RequestError: it is none.
    """
    try:
        found = json.loads(bytes(body))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise RequestError(f"the body is not JSON ({error!s:.100})") from error
    if not isinstance(found, dict):
        raise RequestError(f"the body is a JSON {type(found).__name__}; expected an object")
    return found


def field(found: Mapping[str, Any], name: str, kind: type, default: Any = None, *, of: str = "the body") -> Any:
    """Returns a field of a JSON object.

    Args:
      kind: its type; an object of another type is an error.
      default: where the field is missing or null; None makes that an error.

    Raises:
      RequestError: it is missing or of another type.
    """
    value = found.get(name)
    if (value := default if value is None else value) is None:
        raise RequestError(f"{of} has no {name!r}; expected {kind.__name__}")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RequestError(f"{name!r} of {of} is {value!s:.60}; expected {kind.__name__}")
    return value


def read_infer(body: bytes, header_length: str | None, expected: Mapping[str, Tensor]) -> InferRequest:
    """Reads the body of `/infer`: JSON, then the binary contents of the tensors that say so, in their order.

    Args:
      header_length: bytes of the JSON, as the header says; None where all of the body is JSON.

    Raises:
      RequestError: the body cannot be used; names the tensor.
    """
    size = len(body)
    if header_length is not None:
        # Python's int takes signs, underscores and digits of all scripts.
        size = (
            int(header_length)
            if header_length.isascii() and header_length.isdigit() and len(header_length) < 16
            else -1
        )
        if not 0 <= size <= len(body):
            raise RequestError(
                f"Inference-Header-Content-Length is {header_length:.40}; the body has {len(body)} bytes"
            )
    view = memoryview(body)
    found, at = parse_json(view[:size]), size
    tensors: Arrays = {}
    for tensor in field(found, "inputs", list):
        if not isinstance(tensor, dict):
            raise RequestError(f"inputs hold {tensor!s:.60}; expected objects")
        name = field(tensor, "name", str, of="a tensor")
        of = f"tensor {name!r:.80}"
        shape = field(tensor, "shape", list, of=of)
        if not all(type(length) is int for length in shape):
            raise RequestError(f"'shape' of {of} is {shape!s:.60}; expected a list of integers")
        datatype = field(tensor, "datatype", str, of=of)
        check_input(name, datatype, shape, expected, tensors)
        parameters = field(tensor, "parameters", dict, {}, of=of)
        if _BINARY_SIZE in parameters:
            length = field(parameters, _BINARY_SIZE, int, of=of)
            if "data" in tensor:
                raise RequestError(f"{of} has both 'data' and {_BINARY_SIZE!r}; expected one")
            if not 0 <= length <= len(body) - at:
                raise RequestError(f"{of} has {_BINARY_SIZE} {length}; {len(body) - at} bytes are left of the body")
            values = from_raw(name, datatype, view[at : at + length])
            at += length
        elif parameters:
            raise RequestError(f"{of} has the parameters {sorted(parameters)!s:.80}; only {_BINARY_SIZE!r} is known")
        else:
            values = _from_json(name, datatype, field(tensor, "data", list, of=of))
        tensors[name] = shaped(name, values, shape)
    if at != len(body):
        raise RequestError(f"{len(body) - at} bytes of the body belong to no tensor")
    parameters = field(found, "parameters", dict, {})
    binary = field(parameters, "binary_data_output", bool, False, of="parameters")
    outputs = {}
    for output in field(found, "outputs", list, []):
        if not isinstance(output, dict):
            raise RequestError(f"outputs hold {output!s:.60}; expected objects")
        name = field(output, "name", str, of="an output")
        options = field(output, "parameters", dict, {}, of=f"output {name!r:.80}")
        if unknown := set(options) - {_BINARY} - ({"classification"} if options.get("classification") == 0 else set()):
            raise RequestError(
                f"output {name!r:.80} has the parameters {sorted(unknown)!s:.80}; only {_BINARY!r} is known"
            )
        outputs[name] = field(options, _BINARY, bool, binary, of=f"output {name!r:.80}")
    return InferRequest(field(found, "id", str, ""), tensors, outputs, binary, parameters)


def _from_json(name: str, datatype: str, data: list) -> np.ndarray:
    """Returns the flat values of JSON `data`, which may be nested as the shape says or flat."""
    expected = f"expected {'strings' if datatype == 'BYTES' else 'numbers'}, flat or nested as the shape says"
    if datatype == "BYTES":
        flat, pending = [], [data]
        while pending:
            value = pending.pop()
            if isinstance(value, list):
                pending.extend(reversed(value))
            elif isinstance(value, str):
                flat.append(value)
            else:
                raise RequestError(f"tensor {name!r} holds {value!s:.60}; {expected}")
        try:
            return objects([value.encode() for value in flat])
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair
            raise RequestError(f"tensor {name!r} is not Unicode text ({error.reason})") from error
    # Types are looked at before NumPy is: of one long string among many short ones it would make a huge array.
    while (kinds := set(map(type, data))) == {list}:
        if len(set(map(len, data))) > 1:
            raise RequestError(f"tensor {name!r} holds lists of different lengths; {expected}")
        data = list(itertools.chain.from_iterable(data))
    if not kinds <= _KINDS[datatype]:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise RequestError(f"tensor {name!r} holds values that are no {datatype} ({found}); {expected}")
    try:
        return np.array(data, DATATYPES[datatype][0])
    except OverflowError as error:
        raise RequestError(f"tensor {name!r} holds a number that is no {datatype}") from error


def write_infer(request: InferRequest, model: str, outputs: Arrays) -> tuple[bytes, int | None]:
    """Returns the body of the answer, and the bytes of its JSON where binary data follow it."""
    tensors, contents = [], []
    for name, values in outputs.items():
        tensor = {"name": name, "datatype": _NAMES[values.dtype], "shape": list(values.shape)}
        if request.outputs.get(name, request.binary):
            contents.append(np.ascontiguousarray(values).tobytes())
            tensor["parameters"] = {_BINARY_SIZE: len(contents[-1])}
        else:
            tensor["data"] = values.ravel().tolist()
        tensors.append(tensor)
    found = {"model_name": model, "model_version": VERSION, "outputs": tensors}
    if request.id:
        found = {"id": request.id} | found
    header = json.dumps(found, separators=(",", ":")).encode()
    return b"".join((header, *contents)), len(header) if contents else None
