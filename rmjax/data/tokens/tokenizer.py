"""Hugging Face tokenizers: text to tokens, special tokens, chat templates."""

import bisect
import copy
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import transformers

from rmjax.core import readouts
from rmjax.core.config_checks import check_date
from rmjax.core.errors import InputError
from rmjax.core.files import identify
from rmjax.core.os_errors import saving
from rmjax.core.progress import progress_bar
from rmjax.data.records.roles import ROLES
from rmjax.data.records.tools import split_tools
from rmjax.data.schema import Message
from rmjax.data.tokens import pieces, templates
from rmjax.data.tokens.byte_level import byte_level
from rmjax.data.tokens.character_limit import CharacterLimit
from rmjax.data.tokens.readouts import Readout, find_readout

ADDED_PAD = "<|rmjax_pad|>"  # padding token of an artifact whose tokenizer has no token to spare
_BATCH = 2048  # texts tokenized in one call; the progress bar advances after each


class Encoded(NamedTuple):
    """A conversation as tokens int32 [length], and what the chat template left out (see `templates.find_left_out`)."""

    tokens: np.ndarray
    left_out: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer and chat template, with one rule for each kind of conversation.

    * Messages are rendered whole by the chat template, without a generation prompt, and tokenized with nothing added.
    * Strings with `add_eos` get the tokenizer's special tokens, and its EOS token unless they end with it, as in TRL. A
      BOS token that the text starts with is not doubled.
    * Strings without `add_eos` (NeMo-Aligner's `text` and `sentences`) are tokenized with nothing added.

    `date` (YYYY-MM-DD) is what a chat template writes that asks for the present date. Where the reward is read at a
    certain token by `readout` (a value of `config.data.readout`), conversations without it get it at their end.
    """

    base: transformers.PreTrainedTokenizerBase
    name: str
    date: str = templates.DEFAULT_DATE
    readout: str = readouts.LAST_TOKEN

    @classmethod
    def load(cls, path: str, date: str = "", readout: str = readouts.LAST_TOKEN) -> "Tokenizer":
        """Returns the tokenizer of a Hugging Face directory or hub name; of an empty path, the built-in one.

        Args:
          date: for its chat template; empty: `templates.DEFAULT_DATE`.
          readout: where rewards are read.

        Raises:
          InputError: the tokenizer is missing or damaged, or is not a fast one; or `date` is none, or `readout` does
            not fit it.
        """
        base, name = cls._load(path) if path else (byte_level(), "built-in byte level")
        tokenizer = cls(base, name, check_date(date or templates.DEFAULT_DATE), readouts.check(readout))
        _ = tokenizer.readout_place  # raises
        return tokenizer

    @staticmethod
    def _load(path: str) -> tuple[transformers.PreTrainedTokenizerBase, str]:
        if pathlib.Path(path).is_file() and (what := identify(pathlib.Path(path))):
            raise InputError(f"tokenizer {path!r}: {what}")
        directory = pathlib.Path(path)
        # transformers makes an empty tokenizer for some model types if there is none.
        if directory.is_dir() and not any(any(directory.glob(name)) for name in ("*token*", "vocab*", "*.model")):
            raise InputError(
                f"tokenizer {path!r}: the directory has no tokenizer.json; copy the tokenizer's files into it, or set "
                "config.data.tokenizer"
            )
        try:
            base = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)  # None would ask the user
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
        return base, path

    def __len__(self) -> int:
        return len(self.base)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that affects tokenization."""
        date = self.date if self.writes_date else ""
        template = f"{self.base.chat_template}{date}"
        parts = (self.base.backend_tokenizer.to_str(), template, str(self.base.special_tokens_map))
        readout = () if self.readout == readouts.LAST_TOKEN else (self.readout,)
        return hashlib.sha256("\0".join((*parts, *readout)).encode()).hexdigest()

    @functools.cached_property
    def readout_place(self) -> Readout:
        """`find_readout` of the tokenizer."""
        return find_readout(self.readout, self.base, self.name)

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

    @property
    def writes_date(self) -> bool:
        """Whether the chat template asks for the present date, and gets `date`."""
        return templates.uses_clock(str(self.base.chat_template))

    def render(self, conversation: list[Message]) -> str:
        """Returns the conversation rendered by the chat template, which gets its tools apart (see `records.tools`).

        Raises:
          InputError: there is no chat template, it fails, a role is unknown, or a message contains a special token.
        """
        messages, tools = split_tools(conversation)
        source = self._template_source(tools)
        if (token := self.find_special_token(json.dumps(conversation, ensure_ascii=False, default=str))) is not None:
            raise InputError(
                f"a message contains the text {token!r}, which is a special token of the tokenizer; remove it, or "
                "write the conversation as a string, where special tokens are allowed"
            )
        for role in (message["role"] for message in messages):
            if role not in ROLES and not templates.names_role(source, role):
                raise InputError(
                    f"a message has the role {role!r}, which the chat template does not know; expected "
                    f"{', '.join(ROLES)} (or human, gpt and the like, which are renamed): rename the role"
                )
        try:
            source = templates.fix_clock(source, self.date)
            return str(self.base.apply_chat_template(messages, [*tools] or None, chat_template=source, tokenize=False))
        except Exception as error:  # jinja lets any exception of the template through
            raise InputError(f"the chat template fails on these messages ({error})") from error

    def _template_source(self, tools: list[dict[str, Any]]) -> str:
        self.check_template()
        try:
            return str(self.base.get_chat_template(None, tools or None))
        except ValueError as error:
            raise InputError(f"tokenizer {self.name!r}: {' '.join(str(error).split())[:200]}") from error

    def describe_template(self) -> list[str]:
        """Returns a line with a user and an assistant message as rendered, and one with the template's additions."""
        try:
            text = self.render(list(templates.PROBE))
        except InputError as error:
            return [f"chat template: not shown ({error})"]
        special = [self._special_tokens.pattern] if self._special_tokens else []
        own = re.split("|".join([*special, *(re.escape(message["content"]) for message in templates.PROBE)]), text)
        added = templates.describe_additions(own)
        if self.writes_date:
            added.append(f"the date {self.date}")
        return [
            f"chat template: {text.replace(chr(10), '⏎')}",
            f"the chat template adds of its own: {', '.join(added) or 'nothing'}",
        ]

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
        return pieces.special_pattern(self.base)

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
        return [encoded.tokens for encoded in self.encode_checked(conversations, add_eos)]

    def encode_checked(self, conversations: Sequence[str | list[Message]], add_eos: bool = True) -> list[Encoded]:
        """Returns the tokens of each conversation, and what the chat template left out."""
        texts = [text if isinstance(text, str) else self.render(text) for text in conversations]
        encoded = self.encode_texts(texts, [add_eos and isinstance(text, str) for text in conversations])
        return [
            Encoded(tokens, () if isinstance(given, str) else templates.find_left_out(given, text))
            for given, text, tokens in zip(conversations, texts, encoded, strict=True)
        ]

    def encode_texts(self, texts: Sequence[str], add_eos: Sequence[bool], progress: str = "") -> list[np.ndarray]:
        """Returns the tokens of each text, int32 [length]; `progress` is the title of a progress bar, "" for none."""
        encoded: list[np.ndarray] = [np.zeros(0, np.int32)] * len(texts)
        bar = progress_bar(len(texts), progress, "text", disable=not progress or len(texts) < _BATCH)
        for special in (False, True):
            chosen = [i for i, add in enumerate(add_eos) if add == special]
            for start in range(0, len(chosen), _BATCH):
                batch = chosen[start : start + _BATCH]
                given = [texts[i] for i in batch]
                for i, tokens in zip(batch, self._encode_batch(given, special), strict=True):
                    encoded[i] = self.readout_place.complete(np.asarray(tokens, np.int32))
                bar.update(len(batch))
        bar.close()
        return encoded

    def _encode_batch(self, texts: list[str], add_eos: bool) -> Sequence[np.ndarray | list[int]]:
        if not add_eos and self._splits_at_special_tokens:
            return pieces.encode(texts, self.base, self._special_tokens)
        # verbose=False: no warning about the tokenizer's maximum length; `max_length` is checked elsewhere.
        ids = self.base(texts, add_special_tokens=add_eos, verbose=False)["input_ids"]
        return [self._with_eos(tokens) for tokens in ids] if add_eos else ids

    @functools.cached_property
    def _splits_at_special_tokens(self) -> bool:
        return pieces.splits_at_special_tokens(self.base)

    @functools.cached_property
    def character_limit(self) -> CharacterLimit:
        """The most characters of a token."""
        return CharacterLimit(self.base)

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
        """Returns a copy whose padding token never ends a conversation: a special token, or else one that is added.

        transformers' sequence classifiers read the last token that is not padding; SmolLM2's padding token is the one
        that ends each message, and Llama 3 has none. The id of an added token may be beyond the model's embedding.

        Raises:
          InputError: a token has to be added, and the tokenizer's ids have gaps.
        """
        base = copy.deepcopy(self.base)
        special = [token.content for _, token in sorted(base.added_tokens_decoder.items()) if token.special]
        candidates = filter(None, (base.pad_token, base.unk_token, *special))
        ending, template = [base.eos_token, base.bos_token], str(base.chat_template or "")
        ending.append(self.readout_place.text)
        model = json.loads(base.backend_tokenizer.to_str())["model"]
        if not model.get("byte_fallback") and (model.get("unk_token") or model.get("unk_id") is not None):
            ending.append(base.unk_token)  # of a text that ends with an unknown word
        free = [token for token in candidates if token not in ending and token not in template]
        if free:
            base.pad_token = free[0]
        else:
            base.add_special_tokens({"pad_token": ADDED_PAD})
            if base.pad_token_id in self.base.get_vocab().values():
                raise InputError(
                    f"tokenizer {self.name!r} has no special token for padding, and none can be added since its ids "
                    "have gaps: add a padding token to it"
                )
        return dataclasses.replace(self, base=base)

    def save(self, directory: pathlib.Path) -> None:
        """Writes a complete Hugging Face tokenizer directory; raises InputError if it cannot be written."""
        with saving(directory):
            self.base.save_pretrained(directory)
