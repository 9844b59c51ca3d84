"""Names of the places where the reward of a conversation is read: values of `config.data.readout`."""

from typing import Any

from rmjax.core.errors import InputError

LAST_TOKEN, EOS = "last_token", "eos"
CONVERSATION_MEAN, RESPONSE_MEAN = "conversation_mean", "response_mean"
TOKEN, TOKEN_ID = "token:", "token_id:"  # before a token's text, or its id
_EXPECTED = f"{LAST_TOKEN}, {EOS}, {CONVERSATION_MEAN}, {RESPONSE_MEAN}, {TOKEN}TEXT or {TOKEN_ID}NUMBER"


def check(name: Any, where: str = "config.data.readout") -> str:
    """Returns the name of a readout; raises InputError, with its place `where`, if there is none of that name."""
    text = name if isinstance(name, str) else ""
    marked = text.removeprefix(TOKEN) if text.startswith(TOKEN) else ""
    number = text.startswith(TOKEN_ID) and text.removeprefix(TOKEN_ID).isdecimal()
    if not (text in (LAST_TOKEN, EOS, CONVERSATION_MEAN, RESPONSE_MEAN) or marked or number):
        raise InputError(f"{where} is {name!r}; choose one of {_EXPECTED}")
    return text


def is_mean(name: str) -> bool:
    """Returns whether the head reads the mean of several hidden states."""
    return name in (CONVERSATION_MEAN, RESPONSE_MEAN)
