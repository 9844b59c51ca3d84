"""Errors that end a request, with their HTTP status and gRPC status code, and the names of inputs in their messages.

Messages are sent to the client: they name the tensor or field, never a path or a line of code on the server.
"""

import dataclasses
import functools

from absl import logging

from rmjax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class InputName:
    """Name of a request's input in error messages.

    Attributes:
      text: the whole input.
      row_format: of one of its rows, with the row's index as `{}`; empty: the input is a single conversation.
    """

    text: str
    row_format: str = ""

    def row(self, row: int) -> str:
        """Returns the name of a row."""
        return self.row_format.format(row) or self.text


@functools.lru_cache(64)
def tensor_name(name: str) -> InputName:
    """Returns the name of an input tensor.

    >>> tensor_name("tokens").row(3)
    "tensor 'tokens', row 3"
    """
    return InputName(f"tensor {name!r}", f"tensor {name!r}, row {{}}")


def field_name(name: str, *, is_list: bool = False) -> InputName:
    """Returns the name of a field of a JSON body, with one conversation or a list of them.

    >>> field_name("query", is_list=True).row(3)
    "'query[3]' of the body"
    """
    return InputName(f"{name!r} of the body", f"'{name}[{{}}]' of the body" if is_list else "")


class ServingError(Exception):
    """A request failed; the message gives the client the cause.

    Attributes:
      status, code: the HTTP status, and the name of the gRPC status code.
      metric_label: value of the label `reason` of the metric `rmjax_refused`; the class name if not set.
    """

    status, code = 500, "INTERNAL"

    def __init__(self, message: str):
        # A message may quote a lone surrogate, which JSON can represent and UTF-8 cannot.
        super().__init__(message.encode(errors="backslashreplace").decode())


class RequestError(ServingError, InputError):
    """The request is invalid."""

    status, code = 400, "INVALID_ARGUMENT"


class Unauthenticated(ServingError):
    """The bearer token is missing or wrong."""

    status, code = 401, "UNAUTHENTICATED"


class Forbidden(ServingError):
    """A browser sent this request for a page of another origin."""

    status, code = 403, "PERMISSION_DENIED"


class NotFound(ServingError):
    """The model, version or path does not exist."""

    status, code = 404, "NOT_FOUND"


class RequestTimeout(ServingError):
    """The request's body did not arrive in time."""

    status, code = 408, "DEADLINE_EXCEEDED"


class PayloadTooLarge(ServingError):
    """The request's body exceeds the size limit."""

    status, code = 413, "RESOURCE_EXHAUSTED"


class NotFinite(ServingError):
    """The model returned NaN or infinity."""


class Unavailable(ServingError):
    """The server is warming up or draining."""

    status, code = 503, "UNAVAILABLE"
    retry_after = 1.0  # seconds
    metric_label = "NotServing"


class Overloaded(ServingError):
    """The queue is full; the same request may succeed later.

    Args:
      retry_after: seconds until the queue probably has room.
    """

    # HTTP 503, not 429: verl does not retry after a 4xx.
    status, code = 503, "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after: float = 1.0):
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(ServingError):
    """The client's deadline passed before the request was scored."""

    status, code = 504, "DEADLINE_EXCEEDED"
    metric_label = "DeadlinePassed"


def public_error(error: Exception) -> ServingError:
    """Returns the error to send to the client, and logs others than `ServingError`: their text may contain secrets."""
    if isinstance(error, ServingError):
        return error
    logging.exception("a request failed")
    return ServingError(f"scoring failed ({type(error).__name__}); see the server's log")
