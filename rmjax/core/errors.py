"""The exception for invalid input, and messages of common checks."""

import pathlib

import numpy as np


class InputError(ValueError):
    """Invalid input from the user; any other exception is a bug in rmjax.

    The message names the object, the value found, the value expected and the fix. Programs print it as one line and
    exit with status 2 (`rmjax.core.program`).

    Args:
      page: path and anchor of the documentation that explains the error, printed as a line after the message.
    """

    def __init__(self, message: str = "", page: str = ""):
        super().__init__(message)
        if page:
            self.add_note(f"see {page}")  # shown by Python's traceback too


def checkpoint_error(path: pathlib.Path, error: Exception, fix: str = "") -> InputError:
    """Returns the error for a checkpoint that Orbax could not read, with its reason shortened to one line."""
    reason = " ".join(str(error).split())[:300]
    return InputError(f"checkpoint {path} cannot be read ({type(error).__name__}: {reason}){fix}")


def non_finite_error(name: str, values: np.ndarray, fix: str) -> str | None:
    """Returns the error message for the first non-finite element of an array; None if all elements are finite.

    >>> non_finite_error("rewards", np.array([[0.5], [np.nan]]), "check the model's weights")
    "rewards[1, 0] is nan, not finite; check the model's weights"
    """
    if np.isfinite(values).all():
        return None
    index = np.argwhere(~np.isfinite(values))[0].tolist()
    return f"{name}{index} is {values[tuple(index)]}, not finite; {fix}"
