"""JSON text to values; a key that an object has twice is an error, where `json` silently keeps the last value."""

import collections
import json
from typing import Any


class DuplicateKey(ValueError):
    """An object has a key twice."""


class ObjectHook:
    """An `object_pairs_hook` of `json` that makes dictionaries and notes a key that one of them has twice.

    Attributes:
      duplicate: the message about the first such key; empty: none.
    """

    def __init__(self) -> None:
        self.duplicate = ""

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs) and not self.duplicate:
            counts = collections.Counter(key for key, _ in pairs)
            key = next(key for key, count in counts.items() if count > 1)
            self.duplicate = f"the key {key!r:.60} is twice in one object; remove one of them"
        return value


def parse(text: str | bytes) -> Any:
    """Returns the value of a JSON text.

    Raises:
      DuplicateKey: an object has a key twice; names it.
      ValueError: the text is not JSON.

    >>> parse('{"prompt": "p", "chosen": "a", "chosen": "b"}')
    Traceback (most recent call last):
    rmjax.core.json_text.DuplicateKey: the key 'chosen' is twice in one object; remove one of them
    """
    hook = ObjectHook()
    value = json.loads(text, object_pairs_hook=hook)
    if hook.duplicate:
        raise DuplicateKey(hook.duplicate)
    return value
