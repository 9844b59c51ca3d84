"""Causal language models as reward models: a head made of their logits' rows for one or two tokens."""

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from rmjax.core.errors import InputError
from rmjax.data.tokens.tokenizer import Tokenizer
from rmjax.models import loading, paths


def load(path: str, mesh: Mesh, tokens: Sequence[str], separator: str) -> loading.LoadedModel:
    """Returns a causal language model with the reward of `tokens`; arguments as `rmjax.training.export.export`'s.

    Raises:
      InputError: the tokens are not one or two of the vocabulary, or the model has no rows for them.
    """
    if len(tokens) > 2 or len(set(tokens)) < len(tokens):
        raise InputError(f"--head_tokens is {','.join(tokens)}; expected one token, or a good and a bad one")
    if paths.is_composed(path):
        raise InputError(f"--head_tokens: {path} is a workdir or an adapter; expected a causal language model")
    tokenizer = Tokenizer.load(paths.tokenizer_directory(path))
    ids, attribute = [_token_id(tokenizer, token) for token in tokens], "correct" if separator else "reward"
    if len(set(ids)) < len(ids):
        raise InputError(f"--head_tokens: {' and '.join(tokens)} are both the token {ids[0]}; give two tokens")
    loaded = loading.load_model(path, mesh=mesh, tokens=ids, attribute=attribute)
    metadata = loaded.metadata | {"head_tokens": list(tokens)}
    if separator:
        metadata["data_options"] = {"step_readout": "separator", "step_separator": separator}
    return dataclasses.replace(loaded, metadata=metadata)


def _token_id(tokenizer: Tokenizer, text: str) -> int:
    """Returns the id of the one token that a text becomes by itself, or that the vocabulary has by this name."""
    ids = tokenizer.base.encode(text, add_special_tokens=False)
    if len(ids) == 1 and ids[0] != tokenizer.base.unk_token_id:
        return ids[0]
    if (found := tokenizer.base.get_vocab().get(text)) is not None:
        return found
    pieces = ", ".join(map(repr, tokenizer.base.convert_ids_to_tokens(ids)))
    raise InputError(
        f"--head_tokens: {text!r} becomes {len(ids)} tokens of {tokenizer.name!r} ({pieces}); expected one known "
        "token: give a text that is one token, or the name of a token in the vocabulary"
    )
