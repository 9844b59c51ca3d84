"""What the client's transports have in common.

Axis letters: n conversations of a request, A attributes.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np

START = "python -m rmjax.serve --model=PATH"
CONNECT_SECONDS = 10.0  # of an attempt to connect


class Answer(NamedTuple):
    """The answer to an inference request.

    Attributes:
      rewards: float32 [n, A].
      exceeded: bool [n], whether a conversation was longer than the model's maximum, and was cut.
      left_out: what the chat template left out; empty: nothing.
      reward_std: standard deviations of the rewards, float32 [n, A], if asked for.
    """

    rewards: np.ndarray
    exceeded: np.ndarray
    left_out: str
    reward_std: np.ndarray | None = None


class Transport(Protocol):
    """One attempt of each kind of request, within `left` seconds.

    The methods raise `Failure` where the same request may succeed later, else `ServerError`.
    """

    async def infer(
        self, name: str, data: list[str], parameters: dict[str, bool], std: bool, left: float, rows: str = ""
    ) -> Answer:
        """Returns the rewards of the strings in the input tensor `name`, with `std` their standard deviations too.

        `rows` names the strings in errors.
        """

    async def model_card(self, left: float) -> dict[str, Any]:
        """Returns the model's metadata."""

    async def models(self, left: float) -> list[str]:
        """Returns the names of the server's models."""

    async def close(self) -> None:
        """Closes the connections."""


def refusal_fix(status: int, token: str) -> str:
    """Returns what to do about a refused request, by the status of HTTP."""
    token_fix = "the token of this client is not the server's" if token else "pass token=... to the client"
    return {401: f" ({token_fix})", 404: " (models are named by the client's argument `model`)"}.get(status, "")
