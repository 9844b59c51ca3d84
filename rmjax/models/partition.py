"""The partition of the parameters into trained and frozen ones, by the rule `train.trainable`.

Only trained parameters have gradients, moments and checkpoints. Frozen ones are those of the run's start: they are read
again where they are needed, and compared with a checksum.
"""

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp

from rmjax.core import pytree
from rmjax.core.config import Config
from rmjax.core.errors import InputError
from rmjax.models import int8, lora
from rmjax.models.decoder import Params, RewardModel
from rmjax.models.feature_model import FeatureModel

_NAMES = {"all": "", "head": r"^head/", "lora": rf"^head/|{lora.PATTERN}"}
ADAPTERS_ONLY = ("", "lora")  # values of `train.trainable` with which a run with adapters trains them and the head
FEW = _NAMES["lora"]  # matches the parameters that are float32 whatever `model.param_dtype` is


def trainable_pattern(config: Config) -> str:
    """Returns the regex that finds the paths of the parameters trained by the run of `config`.

    Raises:
      InputError: `config.train.trainable` is not a regex, or does not fit `config.lora`.
    """
    rule, rank = config.train.trainable, config.lora.rank
    if rule == "lora" and not rank:
        raise InputError("config.train.trainable is 'lora' and config.lora.rank is 0; set the rank of the adapters")
    rule = rule or ("lora" if rank else "all")
    try:
        re.compile(rule)
    except re.error as error:
        names = ", ".join(_NAMES)
        raise InputError(
            f"config.train.trainable is {rule!r}, not a regular expression ({error}); expected {names}, or a regex"
        ) from error
    return _NAMES.get(rule, rule)


def check(config: Config, model: RewardModel) -> None:
    """Raises InputError if `config.train.trainable` matches no parameter of the model, or leaves its adapters out."""
    pattern, rule = trainable_pattern(config), config.train.trainable
    paths = pytree.flatten(model.shapes())
    if not any(re.search(pattern, path) for path in paths):
        raise InputError(f"config.train.trainable is {rule!r}, which matches no parameter: {', '.join(paths)}")
    if model.lora and not any(lora.is_adapter(path) and re.search(pattern, path) for path in paths):
        raise InputError(
            f"config.lora.rank is {model.lora.rank} and config.train.trainable is {rule!r}, which leaves the adapters "
            "untrained; set it to 'lora', or the rank to 0"
        )
    if model.frozen_dtype and not any(map(int8.is_part, pytree.flatten(_frozen_shapes(pattern, model)))):
        raise InputError(
            f"config.model.frozen_dtype is {model.frozen_dtype!r} and config.train.trainable is {rule!r}, which trains "
            "all matrices of the layers; set it to 'head' or 'lora' (with config.lora.rank), or remove frozen_dtype"
        )


def split(params: Params, pattern: str) -> tuple[Params, Params]:
    """Returns the trained and the frozen parameters; `pattern` is from `trainable_pattern`."""
    return pytree.split(params, lambda path: re.search(pattern, path) is not None)


def trains_head_only(pattern: str, model: RewardModel) -> bool:
    """Returns whether all trained parameters are the head's."""
    paths = pytree.flatten(model.shapes())
    return all(path.startswith("head/") for path in paths if re.search(pattern, path))


def store(params: Params, pattern: str, model: RewardModel | FeatureModel) -> tuple[Params, Params]:
    """Returns the trained parameters in float32, and the frozen ones in the dtypes of the model, or as int8.

    In bfloat16, updates below 1/256 of a parameter would be lost, and AdamW's second moment would not change.
    """
    cast = lambda leaf, like: leaf.astype(like.dtype)
    dtypes = model.shapes()
    trained, frozen = split(params, pattern)
    trained = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trained)
    frozen = jax.tree.map(cast, frozen, split(dtypes, pattern)[1])
    return trained, int8.quantize(frozen) if model.frozen_dtype == "int8" else frozen


def _frozen_shapes(pattern: str, model: RewardModel) -> Params:
    return jax.eval_shape(lambda params: store(params, pattern, model)[1], model.shapes())


def is_float32(pattern: str, model: RewardModel) -> bool:
    """Returns whether all trained parameters are float32 in the dtypes of the model."""
    paths = pytree.flatten(model.shapes())
    return all(re.search(FEW, path) for path in paths if re.search(pattern, path))


def checksum(params: Any) -> str:
    """Returns a hash of the bits, shapes and paths of the parameters, which does not depend on their sharding."""
    leaves = pytree.flatten(params)
    text = "".join(
        f"{path} {leaf.shape} {leaf.dtype} {value}\n"
        for (path, leaf), value in zip(
            leaves.items(), jax.device_get([_sum_bits(leaf) for leaf in leaves.values()]), strict=True
        )
    )
    return hashlib.sha256(text.encode()).hexdigest()


@jax.jit
def _sum_bits(x: jax.Array) -> jax.Array:
    """Returns the sum, modulo 2^32, of the elements' bits, each times an odd number that depends on its index."""
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)
