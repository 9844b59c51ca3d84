"""Tokenizers: how text becomes tokens, and the built-in byte-level one."""

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
import tqdm
import transformers

from rmjax.core.errors import InputError
from rmjax.data.schema import Message

_CHUNK = 2048  # texts tokenised between two moves of the progress bar
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_level() -> transformers.PreTrainedTokenizerFast:
    """Makes the built-in tokenizer: one token a byte, special tokens, and a chat template; needs no files."""
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

    * Messages are rendered whole by the chat template, without a generation prompt, and tokenised with nothing added.
    * Strings are tokenised with the tokenizer's own special tokens and closed by its EOS unless they end with it, as
      TRL does. A BOS that the text itself starts with is not doubled.
    * Texts taken as they are (NeMo-Aligner's `text` and `sentences`) get nothing added.
    """

    base: transformers.PreTrainedTokenizerBase
    name: str

    @classmethod
    def load(cls, path: str) -> "Tokenizer":
        """Loads a tokenizer from a Hugging Face directory or hub name; empty gives the built-in one.

        Raises:
          InputError: there is none, or its files are damaged.
        """
        if not path:
            return cls(byte_level(), "built-in byte level")
        try:
            base = transformers.AutoTokenizer.from_pretrained(path)
        except Exception as error:  # transformers raises whatever its parsers raise
            message = " ".join(str(error).split())[:200]
            raise InputError(
                f"tokenizer {path!r} could not be loaded ({message}); give the directory of a Hugging "
                "Face tokenizer as config.data.tokenizer"
            ) from error
        if not base.is_fast:
            raise InputError(
                f"tokenizer {path!r} is a {type(base).__name__}, which has no tokenizer.json; expected "
                "one with it: convert the tokenizer, or set config.data.tokenizer"
            )
        return cls(base, path)

    def __len__(self) -> int:
        return len(self.base)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides how text becomes tokens."""
        parts = (self.base.backend_tokenizer.to_str(), str(self.base.chat_template), str(self.base.special_tokens_map))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises InputError if the tokenizer can give ids that the model's embedding [vocab_size, D] does not have."""
        largest = max(self.base.get_vocab().values())
        if largest >= vocab_size:
            raise InputError(
                f"tokenizer {self.name!r} has {len(self)} tokens, ids up to {largest}; the model's "
                f"vocab_size is {vocab_size}: use the tokenizer that belongs to the model"
            )

    def check_template(self) -> None:
        """Raises InputError if there is no chat template."""
        if not self.base.chat_template:
            raise InputError(
                f"tokenizer {self.name!r} has no chat template, but the data holds chat messages: set "
                "config.data.tokenizer to one that has one, or give strings"
            )

    def render(self, messages: list[Message]) -> str:
        """Returns the conversation as the chat template writes it.

        Raises:
          InputError: there is no template, it refuses these messages, or one of them holds a control token.
        """
        self.check_template()
        if (token := self.control_token(json.dumps(messages, ensure_ascii=False, default=str))) is not None:
            raise InputError(
                f"a message holds the text {token!r}, which the tokenizer would make a control token; "
                "remove it, or write the conversation as a string to mean it"
            )
        try:
            return self.base.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        except Exception as error:  # templates raise whatever jinja raises
            raise InputError(f"the chat template refuses these messages ({error})") from error

    @functools.cached_property
    def opening(self) -> str:
        """The BOS, where the tokenizer gives it to every text by itself; else empty."""
        bos = self.base.bos_token
        return bos if bos and self.base("a", add_special_tokens=True)["input_ids"][0] == self.base.bos_token_id else ""

    @property
    def around(self) -> tuple[str, ...]:
        """The texts of padding and EOS, as far as there are any."""
        return tuple(filter(None, (self.base.pad_token, self.base.eos_token)))

    @functools.cached_property
    def _control(self) -> re.Pattern | None:
        special = [token.content for token in self.base.added_tokens_decoder.values() if token.special]
        return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True)))) if special else None

    def control_token(self, text: str) -> str | None:
        """Returns the first special token that the tokenizer would find in a text; None if there is none."""
        found = self._control.search(text) if self._control else None
        return found[0] if found else None

    def last_control_token(self, text: str) -> tuple[int, int]:
        """Returns where the last special token in a text starts and ends; (0, 0) if there is none."""
        spans = [match.span() for match in self._control.finditer(text)] if self._control else []
        return spans[-1] if spans else (0, 0)

    def tokens_at(self, text: str, closed: bool, ends: Sequence[int]) -> list[int]:
        """Returns, for each character position, the index of the last token that starts before it.

        Args:
          text, closed: as `encode_texts` gets them.
          ends: positions behind the last character of what is meant, ascending.
        """
        coded = self.base(text, add_special_tokens=closed, return_offsets_mapping=True, verbose=False)
        # As in `_close`: of two BOS one goes.
        dropped = len(coded["input_ids"]) - len(self._close(coded["input_ids"], eos=False)) if closed else 0
        spans = [(i - dropped, start) for i, (start, end) in enumerate(coded["offset_mapping"]) if end > start]
        starts = [start for _, start in spans]
        return [spans[bisect.bisect_left(starts, end) - 1][0] for end in ends]

    def encode(
        self, conversations: Sequence[str | list[Message]], add_eos: bool = True, progress: str = ""
    ) -> list[np.ndarray]:
        """Returns the tokens of each conversation, int32 [length].

        Args:
          conversations: strings or lists of messages.
          add_eos: strings only: add the tokenizer's special tokens and a closing EOS; False takes them as they are.
          progress: title of a progress bar; empty shows none.
        """
        texts = [text if isinstance(text, str) else self.render(text) for text in conversations]
        return self.encode_texts(texts, [add_eos and isinstance(text, str) for text in conversations], progress)

    def encode_texts(self, texts: Sequence[str], closed: Sequence[bool], progress: str = "") -> list[np.ndarray]:
        """Returns the tokens of each text, int32 [length]; `closed` ones get special tokens and a closing EOS."""
        found: list[np.ndarray] = [np.zeros(0, np.int32)] * len(texts)
        bar = tqdm.tqdm(total=len(texts), desc=progress, unit="text", disable=not progress or len(texts) < _CHUNK)
        for add in (False, True):
            chosen = [i for i, special in enumerate(closed) if special == add]
            for start in range(0, len(chosen), _CHUNK):
                part = chosen[start : start + _CHUNK]
                # verbose=False: a warning about the model's maximum length, which max_length governs.
                ids = self.base([texts[i] for i in part], add_special_tokens=add, verbose=False)["input_ids"]
                for i, tokens in zip(part, ids, strict=True):
                    found[i] = np.asarray(self._close(tokens) if add else tokens, np.int32)
                bar.update(len(part))
        bar.close()
        return found

    def words(self, tokens: Sequence[int]) -> list[str]:
        """Returns what each token alone stands for; a part of a character is shown as U+FFFD."""
        # Behind another one, for some decoders drop the space before the first token.
        before = self.base("a", add_special_tokens=False)["input_ids"][-1]
        decode = lambda *ids: self.base.decode(ids, clean_up_tokenization_spaces=False)
        shown = decode(before)
        return [decode(before, int(token)).removeprefix(shown) for token in tokens]

    def _close(self, tokens: list[int], eos: bool = True) -> list[int]:
        bos, eos = self.base.bos_token_id, self.base.eos_token_id if eos else None
        if bos is not None and tokens[:2] == [bos, bos]:
            tokens = tokens[1:]
        return tokens if eos is None or tokens[-1:] == [eos] else [*tokens, eos]

    def with_separate_pad(self) -> "Tokenizer":
        """Returns a copy whose pad token can end no conversation.

        transformers' sequence classifiers read the last token that is not the pad token; SmolLM2 pads with the very
        token that closes each message, Llama 3 has no pad token at all.

        Raises:
          InputError: the vocabulary has no special token left for it.
        """
        base = copy.deepcopy(self.base)
        ending = {base.eos_token, base.bos_token, None}
        special = [token.content for _, token in sorted(base.added_tokens_decoder.items()) if token.special]
        template = str(base.chat_template or "")
        free = [token for token in (base.pad_token, base.unk_token, *special) if token not in ending]
        free = [token for token in free if token not in template]
        if not free:
            raise InputError(
                f"tokenizer {self.name!r} has no special token that could pad: all of {special} can end a "
                "conversation; add one to the tokenizer"
            )
        base.pad_token = free[0]
        return Tokenizer(base, self.name)

    def save(self, directory: pathlib.Path) -> None:
        """Writes a complete Hugging Face tokenizer directory."""
        self.base.save_pretrained(directory)
