"""The number of characters that a token can stand for: texts with more have too many tokens, which need no counting.

A text of a few megabytes takes gigabytes to tokenize, and is then dropped as too long.
"""

import json

import tokenizers
import transformers

from rmjax.data.tokens.pieces import members

# Parts of a tokenizer.json that keep every character. Composition (NFC, NFKC) makes one of at most 4, since no
# canonical decomposition has more (Unicode Standard Annex 15, table 9).
_COMPOSING = {"NFC": 4, "NFKC": 4}
_NORMALIZERS = {"NFD", "NFKD", "Lowercase", "ByteLevel", "Prepend"}
_PRE_TOKENIZERS = {"ByteLevel", "Digits", "Metaspace", "UnicodeScripts"}
_WITHOUT_SPACE = {"Whitespace", "WhitespaceSplit"}  # remove white space
_SPACES = frozenset(chr(i) for i in range(0x3001) if chr(i).isspace())  # all that tokenizers remove, and four more


class CharacterLimit:
    """The most characters of a token of a tokenizer.

    Attributes:
      per_token: 0 if it is not known: parts of a text may be left out, or stand for one unknown token.
      ignored: characters that the tokenizer may leave out; they do not count.
    """

    def __init__(self, base: transformers.PreTrainedTokenizerBase):
        state = json.loads(base.backend_tokenizer.to_str())
        normalizers = members(state["normalizer"], "normalizers")
        splits = members(state["pre_tokenizer"], "pretokenizers")
        vocabulary, model = base.get_vocab(), state["model"]
        if any(part["type"] == "ByteLevel" for part in normalizers + splits):
            lost = _lost_bytes(vocabulary)
        else:  # unknown characters become an unknown token, unless there is a token for each of their bytes
            names = (f"<0x{byte:02X}>" for byte in range(256))
            lost = frozenset() if model.get("byte_fallback") and all(name in vocabulary for name in names) else None
        known = (
            model["type"] in ("BPE", "Unigram")
            and lost is not None
            and all(part["type"] in {*_NORMALIZERS, *_COMPOSING} or _keeps_length(part) for part in normalizers)
            and all(part["type"] in _PRE_TOKENIZERS | _WITHOUT_SPACE or _keeps_splits(part) for part in splits)
        )
        composed = max((_COMPOSING.get(part["type"], 1) for part in normalizers), default=1)
        self.per_token = composed * max(map(len, vocabulary)) if known else 0
        removes_space = any(token["lstrip"] or token["rstrip"] for token in state["added_tokens"]) or any(
            part["type"] in _WITHOUT_SPACE for part in splits
        )
        self.ignored = (lost or frozenset()) | (_SPACES if removes_space else frozenset())

    def exceeds(self, text: str, max_length: int) -> bool:
        """Returns whether a text has more than `max_length` tokens for certain, by its characters alone."""
        most = self.per_token * max_length
        return 0 < most < len(text) and len(text) - sum(map(text.count, self.ignored)) > most


def _lost_bytes(vocabulary: dict[str, int]) -> frozenset[str] | None:
    """Returns the characters that a byte-level tokenizer leaves out, since no token stands for their only byte.

    None if it may leave out others too.
    """
    split = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    in_bytes = lambda character: split(character)[0][0]  # a character for each byte
    if not all(in_bytes(chr(0x80 + i))[1] in vocabulary for i in range(64)):  # every other character has such bytes
        return None
    return frozenset(chr(i) for i in range(128) if in_bytes(chr(i)) not in vocabulary)


def _keeps_length(part: dict) -> bool:
    """Whether a normalizer replaces a fixed text by one that is not shorter."""
    pattern = part.get("pattern", {}).get("String") if part["type"] == "Replace" else None
    return pattern is not None and len(part["content"]) >= len(pattern)


def _keeps_splits(part: dict) -> bool:
    """Whether a pre-tokenizer splits a text without removing what it splits at."""
    return part["type"] in ("Split", "Punctuation") and part["behavior"] != "Removed"
