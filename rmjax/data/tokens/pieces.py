"""Tokenization by pieces: the text between two special tokens is tokenized once, however many texts it is part of.

The responses to a prompt have its turns in common, and a chat template separates turns by special tokens. A tokenizer
splits a text at its special tokens first, and most of them treat each piece as if it were alone.
"""

import json
import re
from collections.abc import Sequence

import numpy as np
import transformers

# Parts of a tokenizer.json whose result for a piece does not depend on where it is in the text.
_PRE_TOKENIZERS = {"ByteLevel", "Split", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"}
_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}


def special_pattern(base: transformers.PreTrainedTokenizerBase) -> re.Pattern | None:
    """Returns a pattern that finds the special tokens in a text; None if there are none."""
    special = [token.content for token in base.added_tokens_decoder.values() if token.special]
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True)))) if special else None


def splits_at_special_tokens(base: transformers.PreTrainedTokenizerBase) -> bool:
    """Whether tokenizing the pieces between special tokens alone gives the same tokens as the whole text."""
    state = json.loads(base.backend_tokenizer.to_str())
    added = state["added_tokens"]
    special = [token for token in added if token["special"]]
    plain = all(not token[key] for token in special for key in ("lstrip", "rstrip", "single_word", "normalized"))
    others = [token["content"] for token in added if not token["special"]]
    apart = not any(_may_overlap(other, token["content"]) for other in others for token in special)
    return (
        plain
        and apart
        and {part["type"] for part in members(state["pre_tokenizer"], "pretokenizers")} <= _PRE_TOKENIZERS
        and {part["type"] for part in members(state["normalizer"], "normalizers")} <= _NORMALIZERS
        and not state["model"].get("dropout")
    )


def members(part: dict | None, name: str) -> list[dict]:
    """Returns the single parts of a part of a tokenizer.json; sequences of others have them under `name`."""
    if part is None:
        return []
    return [inner for member in part[name] for inner in members(member, name)] if name in part else [part]


def _may_overlap(other: str, special: str) -> bool:
    """Whether an added token that is not special may hide the special token in a text."""
    return special in other or any(other.endswith(special[:size]) for size in range(1, len(special)))


def encode(
    texts: Sequence[str], base: transformers.PreTrainedTokenizerBase, pattern: re.Pattern | None
) -> list[np.ndarray]:
    """Returns the tokens of each text, int32 [length], without added special tokens; see `splits_at_special_tokens`.

    Args:
      pattern: of the special tokens; None: the texts are not split.
    """
    pieces = [_split(text, pattern) for text in texts]
    unique = list(dict.fromkeys(piece for parts in pieces for piece in parts))
    backend = base.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    encoded = backend.encode_batch_fast(unique, add_special_tokens=False)
    tokens = {piece: np.array(found.ids, np.int32) for piece, found in zip(unique, encoded, strict=True)}
    return [np.concatenate([np.zeros(0, np.int32), *(tokens[piece] for piece in parts)]) for parts in pieces]


def _split(text: str, pattern: re.Pattern | None) -> list[str]:
    """Returns the special tokens and the pieces between them, in order; none is empty."""
    if pattern is None:
        return [text]
    found, start = [], 0
    for match in pattern.finditer(text):
        found += [text[start : match.start()], match[0]]
        start = match.end()
    return list(filter(None, [*found, text[start:]]))
