"""Where the reward of a conversation is read, by its tokens alone: the same in training, evaluation and serving."""

import dataclasses

import numpy as np
import transformers

from rmjax.core import readouts
from rmjax.core.errors import InputError
from rmjax.data.schema import Tree
from rmjax.data.tokens.trees import common_prefix_length


@dataclasses.dataclass(frozen=True)
class Readout:
    """A kind of readout with the tokens of a tokenizer that it depends on.

    Attributes:
      name: see `config.data.readout`.
      token: id of the token at whose last occurrence the reward is read; None: the last token.
      start: int32 [n], the tokens before a response; the mean is over the tokens after their last occurrence. Empty:
        over the whole conversation, or no mean.
      text: of `token` or `start`, for messages.
    """

    name: str = readouts.LAST_TOKEN
    token: int | None = None
    start: tuple[int, ...] = ()
    text: str = ""

    @property
    def depends_on_tokens(self) -> bool:
        """Whether a conversation may lack what `find` looks for."""
        return self.token is not None or bool(self.start)

    def complete(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the tokens int32 [length] of a conversation with `token` at the end, if it is not among them."""
        if self.token is None or (tokens == self.token).any():
            return tokens
        return np.append(tokens, np.int32(self.token))

    def truncate(self, tokens: np.ndarray, length: int) -> np.ndarray:
        """Returns the first `length` tokens of a conversation; the last of them is `token`, if that was cut off."""
        if self.token is None or not (tokens[length:] == self.token).any():
            return tokens[:length]
        return np.append(tokens[: length - 1], np.int32(self.token))

    def find(self, tokens: np.ndarray) -> tuple[int, int]:
        """Returns the index of a conversation's readout, and the number of tokens up to it that are averaged.

        Args:
          tokens: int [length] of the whole conversation.

        Raises:
          InputError: the token, or the start of the response, is not there.
        """
        end, span = len(tokens) - 1, 1
        if self.token is not None:
            found = np.flatnonzero(tokens == self.token)
            if not len(found):
                raise InputError(
                    f"there is no token {self.text!r}, at which the reward is read (data.readout = {self.name}): add "
                    "it, or give text, to which it is added"
                )
            end = int(found[-1])
        elif readouts.is_mean(self.name):
            span = len(tokens) - self._response_start(tokens)
        return end, span

    def _response_start(self, tokens: np.ndarray) -> int:
        size = len(self.start)
        if not size:
            return 0
        windows = np.lib.stride_tricks.sliding_window_view(tokens, size) if len(tokens) > size else np.empty((0, size))
        # A response has at least one token.
        found = np.flatnonzero((windows[: len(tokens) - size] == self.start).all(axis=1))
        if not len(found):
            raise InputError(
                f"{self.text!r} is not followed by a response, whose hidden states are averaged (data.readout = "
                f"{self.name}): give chat messages that end with a response, or set data.readout to "
                f"{readouts.CONVERSATION_MEAN}"
            )
        return int(found[-1]) + size

    def place(self, tree: Tree) -> Tree:
        """Returns a tree with one readout per response, each moved to where this one is.

        Raises:
          InputError: see `find`.
        """
        if self.name == readouts.LAST_TOKEN:
            return tree
        found = [self.find(np.concatenate([tree.prefix, branch])) for branch in tree.branches]
        places = tuple((k, end - len(tree.prefix)) for k, (end, _) in enumerate(found))
        spans = tuple(span for _, span in found) if readouts.is_mean(self.name) else ()
        return dataclasses.replace(tree, readouts=places, spans=spans)


def find_readout(name: str, base: transformers.PreTrainedTokenizerBase, tokenizer: str) -> Readout:
    """Returns the readout of a name (see `rmjax.core.readouts`) with the tokens that a tokenizer has for it.

    Args:
      tokenizer: name of the tokenizer, for messages.

    Raises:
      InputError: the tokenizer has no such token, or its chat template has nothing that begins a response.
    """
    if name == readouts.RESPONSE_MEAN:
        text, start = _generation_prompt(base)
        if not start:
            raise InputError(
                f"config.data.readout is {name!r}; the tokenizer {tokenizer!r} has no chat template with a generation "
                f"prompt, by which the start of the response is found: choose {readouts.CONVERSATION_MEAN}"
            )
        return Readout(name, None, start, text)
    token = _marked_token(name, base)
    if token is None and name not in (readouts.LAST_TOKEN, readouts.CONVERSATION_MEAN):
        kind = "EOS token" if name == readouts.EOS else "such token (a text has to be one token)"
        raise InputError(
            f"config.data.readout is {name!r}; the tokenizer {tokenizer!r} has no {kind}: choose another readout, or "
            "add the token to the tokenizer"
        )
    return Readout(name, token, (), "" if token is None else str(base.convert_ids_to_tokens(token)))


def _marked_token(name: str, base: transformers.PreTrainedTokenizerBase) -> int | None:
    """Returns the id of the token at which the reward is read; None if it is at none, or if there is no such token."""
    if name == readouts.EOS:
        return base.eos_token_id
    if name.startswith(readouts.TOKEN):
        return base.get_vocab().get(name.removeprefix(readouts.TOKEN))
    if name.startswith(readouts.TOKEN_ID):
        token = int(name.removeprefix(readouts.TOKEN_ID))
        return token if token in base.get_vocab().values() else None
    return None


def _generation_prompt(base: transformers.PreTrainedTokenizerBase) -> tuple[str, tuple[int, ...]]:
    """Returns what the chat template writes before a response, without white space at its end, and its tokens, if any.

    The tokens are those after a message: by itself, a text may begin with another token, such as with a space.
    """
    if not base.chat_template:
        return "", ()
    messages = [{"role": "user", "content": "a"}]
    render = lambda add: str(base.apply_chat_template(messages, tokenize=False, add_generation_prompt=add))
    try:
        without, with_prompt = render(False), render(True)
    except Exception:  # jinja lets any exception of the template through
        return "", ()
    # The white space may become one token with that at the start of the response.
    text = with_prompt.removeprefix(without).rstrip() if with_prompt.startswith(without) else ""
    before, after = (np.array(base.encode(t, add_special_tokens=False)) for t in (without, without + text))
    return text, tuple(after[common_prefix_length(before, after) :].tolist())
