"""Reward heads made of rows of a language modeling head: the logit of a token, or the difference of two.

Axis letters: V vocabulary, D model.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmjax.core.errors import InputError
from rmjax.core.files import read_json
from rmjax.core.safetensors import TensorDirectory
from rmjax.models.architecture import HeadConfig
from rmjax.models.families import FAMILIES
from rmjax.models.heads import Head

_MATRIX = re.compile(r"(?:language_model\.)?(?:lm_head|embed_out|output)\.weight")
# Keys of config.json that change logits after the product, their values that do not, and defaults of families.
_LOGIT_KEYS = {"final_logit_softcapping": (None, 0), "logits_scaling": (None, 1), "logit_scale": (None, 1)}
_DEFAULTS = {
    "gemma2": {"final_logit_softcapping": 30.0},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.0625},
}


def read(files: TensorDirectory, family: str, tokens: Sequence[int], attribute: str) -> Head:
    """Returns the linear head whose reward is the logit of one token, or that of the first minus that of the second.

    The difference of two logits is log P(first) / P(second), the log-odds between the two tokens.

    Args:
      files: of a causal language model; if its output matrix [V, D] is tied, the embedding's rows are read.
      family: its `model_type` in `FAMILIES`.
      tokens: one or two ids.
      attribute: name of the reward.

    Raises:
      InputError: there is no such row or no output matrix, logits are scaled or capped, or a row is not finite.
    """
    values = read_json(files.config_file)
    values = {**_DEFAULTS.get(family, {}), **(values.get("text_config") or {}), **values}
    for key, off in _LOGIT_KEYS.items():
        if values.get(key) not in off:
            raise InputError(
                f"{files.config_file}: {key} is {values[key]!r}, which changes the logits after the product with the "
                "output matrix; a head of its rows would give other rewards: train a new head instead"
            )
    name = _find_matrix(files, family, values)
    count = files.shapes[name][0]
    rows = []
    for token in tokens:
        if not 0 <= token < count:
            raise InputError(f"{files.paths[name]}: {name!r} has {count} rows; there is none for the token id {token}")
        rows.append(files.read(name, (slice(token, token + 1), slice(None))).astype(np.float32)[0])
    bias_name = name.removesuffix("weight") + "bias"
    bias = files.read(bias_name).astype(np.float32)[list(tokens)] if bias_name in files.shapes else np.zeros(len(rows))
    if not (np.isfinite(rows).all() and np.isfinite(bias).all()):
        raise InputError(f"{files.paths[name]}: the rows {list(tokens)} of {name!r} have NaN or infinity")
    kernel, shift = (rows[0], bias[0]) if len(rows) == 1 else (rows[0] - rows[1], bias[0] - bias[1])
    config = HeadConfig((attribute,), shift=(float(shift),) if shift else ())
    used = frozenset({name, bias_name} & files.shapes.keys())
    return Head(config, kernel[:, None], used, f"{name}, rows {' minus '.join(map(str, tokens))}")


def _find_matrix(files: TensorDirectory, family: str, values: Mapping[str, Any]) -> str:
    """Returns the name of the output matrix: of its own, or of the embedding to which it is tied."""
    table = FAMILIES[family]
    embeddings = {row.name for row in table.tensors + table.other_tensors if row.path == "decoder/embedding/weight"}
    found = [name for name in files.shapes if _MATRIX.fullmatch(name)]
    if not found and values.get("tie_word_embeddings") is not False:  # a tied matrix is not written
        found = [name for name in files.shapes if re.sub(f"^{table.prefix}", table.base, name) in embeddings]
    if not found:
        raise InputError(
            f"{files.directory}: there is no output matrix (lm_head.weight), for the head of --head_tokens; "
            "give a causal language model"
        )
    return found[0]
