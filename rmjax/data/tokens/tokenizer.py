"""Hugging Face tokenizers: text to tokens, special tokens, chat templates; and the built-in byte-level tokenizer."""

import bisect
import copy
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import tokenizers
import transformers

from rmjax.core.errors import InputError
from rmjax.core.files import identify
from rmjax.core.progress import progress_bar
from rmjax.data.schema import Message

_BATCH = 2048  # texts tokenized in one call; the progress bar advances after each
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_level() -> transformers.PreTrainedTokenizerFast:
    """Returns the built-in tokenizer: a token per byte, special tokens, and a chat template; needs no files."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", clean_up_tokenization_spaces=False
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer and chat template, with one rule for each kind of conversation.

    * Messages are rendered whole by the chat template, without a generation prompt, and tokenized with nothing added.
    * Strings with `add_eos` get the tokenizer's special tokens, and its EOS token unless they end with it, as in TRL. A
      BOS token that the text starts with is not doubled.
    * Strings without `add_eos` (NeMo-Aligner's `text` and `sentences`) are tokenized with nothing added.
    """

    base: transformers.PreTrainedTokenizerBase
    name: str

    @classmethod
    def load(cls, path: str) -> "Tokenizer":
        """Returns the tokenizer of a Hugging Face directory or hub name; of an empty path, the built-in one.

        Raises:
          InputError: the tokenizer is missing or damaged, or is not a fast one.
        """
        if not path:
            return cls(byte_level(), "built-in byte level")
        if pathlib.Path(path).is_file() and (what := identify(pathlib.Path(path))):
            raise InputError(f"tokenizer {path!r}: {what}")
        try:
            base = transformers.AutoTokenizer.from_pretrained(path)
        except Exception as error:  # transformers lets any exception of its parsers through
            message = " ".join(str(error).split())[:200]
            raise InputError(
                f"tokenizer {path!r} could not be loaded ({message}); set config.data.tokenizer to the directory of a "
                "Hugging Face tokenizer"
            ) from error
        if not base.is_fast:
            raise InputError(
                f"tokenizer {path!r} is a {type(base).__name__} without tokenizer.json; expected a fast tokenizer: "
                "convert it, or set config.data.tokenizer"
            )
        return cls(base, path)

    def __len__(self) -> int:
        return len(self.base)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that affects tokenization."""
        parts = (self.base.backend_tokenizer.to_str(), str(self.base.chat_template), str(self.base.special_tokens_map))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises InputError if a token id is outside of the model's embedding [vocab_size, D]."""
        if (largest := max(self.base.get_vocab().values())) >= vocab_size:
            raise InputError(
                f"tokenizer {self.name!r} has {len(self)} tokens, ids up to {largest}; the model's vocab_size is "
                f"{vocab_size}: use the model's own tokenizer"
            )

    def check_template(self) -> None:
        """Raises InputError if the tokenizer has no chat template."""
        if not self.base.chat_template:
            raise InputError(
                f"tokenizer {self.name!r} has no chat template, which chat messages need: set config.data.tokenizer "
                "to a tokenizer with one, or use strings"
            )

    def render(self, messages: list[Message]) -> str:
        """Returns the conversation rendered by the chat template.

        Raises:
          InputError: there is no chat template, it fails, or a message contains a special token.
        """
        self.check_template()
        if (token := self.find_special_token(json.dumps(messages, ensure_ascii=False, default=str))) is not None:
            raise InputError(
                f"a message contains the text {token!r}, which is a special token of the tokenizer; remove it, or "
                "write the conversation as a string, where special tokens are allowed"
            )
        try:
            return str(self.base.apply_chat_template(messages, tokenize=False, add_generation_prompt=False))
        except Exception as error:  # jinja lets any exception of the template through
            raise InputError(f"the chat template fails on these messages ({error})") from error

    @functools.cached_property
    def bos_prefix(self) -> str:
        """The BOS token, if the tokenizer adds it to every text with special tokens; else empty."""
        bos = self.base.bos_token
        return bos if bos and self.base("a", add_special_tokens=True)["input_ids"][0] == self.base.bos_token_id else ""

    @property
    def pad_and_eos(self) -> tuple[str, ...]:
        """The padding token and the EOS token, those that exist."""
        return tuple(filter(None, (self.base.pad_token, self.base.eos_token)))

    @functools.cached_property
    def _special_tokens(self) -> re.Pattern | None:
        special = [token.content for token in self.base.added_tokens_decoder.values() if token.special]
        return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True)))) if special else None

    def find_special_token(self, text: str) -> str | None:
        """Returns the first special token in a text; None if there is none."""
        found = self._special_tokens.search(text) if self._special_tokens else None
        return found[0] if found else None

    def last_special_token(self, text: str) -> tuple[int, int]:
        """Returns start and end of the last special token in a text; (0, 0) if there is none."""
        matches = list(self._special_tokens.finditer(text)) if self._special_tokens else []
        return matches[-1].span() if matches else (0, 0)

    def token_indices(self, text: str, add_eos: bool, ends: Sequence[int]) -> list[int]:
        """Returns the index of the last token that starts before each of the character positions `ends` (ascending)."""
        encoded = self.base(text, add_special_tokens=add_eos, return_offsets_mapping=True, verbose=False)
        ids = encoded["input_ids"]
        removed = len(ids) - len(self._without_second_bos(ids)) if add_eos else 0
        spans = [(i - removed, start) for i, (start, end) in enumerate(encoded["offset_mapping"]) if end > start]
        starts = [start for _, start in spans]
        return [spans[bisect.bisect_left(starts, end) - 1][0] for end in ends]

    def encode(self, conversations: Sequence[str | list[Message]], add_eos: bool = True) -> list[np.ndarray]:
        """Returns the tokens of each conversation, int32 [length]; `add_eos` applies to strings only."""
        texts = [text if isinstance(text, str) else self.render(text) for text in conversations]
        return self.encode_texts(texts, [add_eos and isinstance(text, str) for text in conversations])

    def encode_texts(self, texts: Sequence[str], add_eos: Sequence[bool], progress: str = "") -> list[np.ndarray]:
        """Returns the tokens of each text, int32 [length]; `progress` is the title of a progress bar, "" for none."""
        encoded: list[np.ndarray] = [np.zeros(0, np.int32)] * len(texts)
        bar = progress_bar(len(texts), progress, "text", disable=not progress or len(texts) < _BATCH)
        for special in (False, True):
            chosen = [i for i, add in enumerate(add_eos) if add == special]
            for start in range(0, len(chosen), _BATCH):
                batch = chosen[start : start + _BATCH]
                # verbose=False: no warning about the tokenizer's maximum length; `max_length` is checked elsewhere.
                ids = self.base([texts[i] for i in batch], add_special_tokens=special, verbose=False)["input_ids"]
                for i, tokens in zip(batch, ids, strict=True):
                    encoded[i] = np.asarray(self._with_eos(tokens) if special else tokens, np.int32)
                bar.update(len(batch))
        bar.close()
        return encoded

    def token_strings(self, tokens: Sequence[int] | np.ndarray) -> list[str]:
        """Returns the text of each token; a part of a character is shown as U+FFFD."""
        # Decoded after another token, because some decoders drop the space before the first token.
        first = self.base("a", add_special_tokens=False)["input_ids"][-1]
        decode = lambda *ids: str(self.base.decode(ids, clean_up_tokenization_spaces=False))
        prefix = decode(first)
        return [decode(first, int(token)).removeprefix(prefix) for token in tokens]

    def _without_second_bos(self, tokens: list[int]) -> list[int]:
        bos = self.base.bos_token_id
        return tokens[1:] if bos is not None and tokens[:2] == [bos, bos] else tokens

    def _with_eos(self, tokens: list[int]) -> list[int]:
        tokens, eos = self._without_second_bos(tokens), self.base.eos_token_id
        return tokens if eos is None or tokens[-1:] == [eos] else [*tokens, eos]

    def with_separate_pad(self) -> "Tokenizer":
        """Returns a copy whose padding token never ends a conversation; raises InputError if no special token is free.

        transformers' sequence classifiers read the last token that is not padding; SmolLM2's padding token is the one
        that ends each message, and Llama 3 has none.
        """
        base = copy.deepcopy(self.base)
        special = [token.content for _, token in sorted(base.added_tokens_decoder.items()) if token.special]
        candidates = filter(None, (base.pad_token, base.unk_token, *special))
        ending, template = (base.eos_token, base.bos_token), str(base.chat_template or "")
        free = [token for token in candidates if token not in ending and token not in template]
        if not free:
            raise InputError(
                f"tokenizer {self.name!r} has no special token for padding: each of {special} can end a "
                "conversation; add a padding token to the tokenizer"
            )
        base.pad_token = free[0]
        return Tokenizer(base, self.name)

    def save(self, directory: pathlib.Path) -> None:
        """Writes a complete Hugging Face tokenizer directory."""
        self.base.save_pretrained(directory)
