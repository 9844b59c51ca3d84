"""What a request can end in besides an answer, and how the faces say it.

`status` is HTTP's, `code` gRPC's name for it. A message is for the client: it names the tensor or field, never a file
of the server or a line of its code.
"""

from rmjax.core.errors import InputError


class ServingError(Exception):
    """A request was not answered; the message says why."""

    status, code = 500, "INTERNAL"

    def __init__(self, message: str):
        # A message may quote half of a surrogate pair, which JSON can write and UTF-8 cannot.
        super().__init__(message.encode(errors="backslashreplace").decode())


class RequestError(ServingError, InputError):
    """A request that cannot be answered as it is."""

    status, code = 400, "INVALID_ARGUMENT"


class Unauthenticated(ServingError):
    """The bearer token is missing or wrong."""

    status, code = 401, "UNAUTHENTICATED"


class Forbidden(ServingError):
    """A web page of another site sent this request through a browser."""

    status, code = 403, "PERMISSION_DENIED"


class NotFound(ServingError):
    """There is no such model, version or path."""

    status, code = 404, "NOT_FOUND"


class TooSlow(ServingError):
    """The request's body did not arrive in time."""

    status, code = 408, "DEADLINE_EXCEEDED"


class TooLarge(ServingError):
    """The request's body is larger than the server reads."""

    status, code = 413, "RESOURCE_EXHAUSTED"


class NotFinite(ServingError):
    """The model gave a reward that is no number."""


class NotServing(ServingError):
    """The server warms up or drains."""

    status, code = 503, "UNAVAILABLE"
    retry_after = 1.0  # seconds


class Overloaded(ServingError):
    """The queue is full; the same request may succeed later.

    Args:
      retry_after: seconds until there will probably be room.
    """

    # Over HTTP 503 and not 429: verl gives up on every 4xx.
    status, code = 503, "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after: float = 1.0):
        super().__init__(message)
        self.retry_after = retry_after


class DeadlinePassed(ServingError):
    """The time that the client gave is over; what was not yet scored never will be."""

    status, code = 504, "DEADLINE_EXCEEDED"
