"""Heads of several members: how their rewards are combined, how they disagree, and their file in an artifact.

All members read the same features; the kernel of a head is [D, K·A], whose column k·A + a is attribute a of member k.
Axis letters: K members, A attributes, D features.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rmjax.core.errors import InputError
from rmjax.models.architecture import HeadConfig

if TYPE_CHECKING:
    from rmjax.models.decoder import RewardModel

# A safetensors file under another ending: other engines load all *.safetensors of a directory as weights.
FILE = "uncertainty.rmjax"
Array = TypeVar("Array", np.ndarray, jax.Array)
COMBINATIONS = ("mean", "minimum", "mean_std", "quantile")
_KERNEL, _FACTOR, _OFFSET = "members.kernel", "laplace.factor", "laplace.offset"


def combine(rewards: Array, head: HeadConfig) -> Array:
    """Returns the combined rewards [..., A] of members' rewards [..., K, A].

    `mean`; `minimum`, the worst case; `mean_std`, mean - beta · std; `quantile`, the beta quantile, interpolated.

    Source: Coste et al. 2023 (arXiv 2310.02743), section 4: mean, worst-case and uncertainty-weighted optimization;
    there the last one subtracts beta times the variance, here the standard deviation, in units of reward.
    """
    if head.combination == "minimum":
        return rewards.min(axis=-2)
    if head.combination == "quantile":
        return rewards.__array_namespace__().quantile(rewards, head.beta, axis=-2)
    mean = rewards.mean(axis=-2)
    return mean - head.beta * spread(rewards) if head.combination == "mean_std" else mean


def spread(rewards: Array) -> Array:
    """Returns the standard deviation (divisor K) [..., A] of members' rewards [..., K, A]."""
    return rewards.std(axis=-2)


def check_combination(combination: str, beta: float) -> None:
    """Raises InputError for an unknown combination, or a beta that does not fit it."""
    if combination not in COMBINATIONS:
        raise InputError(f"combination is {combination!r}; choose one of {', '.join(COMBINATIONS)}")
    if combination == "quantile" and not 0 <= beta <= 1:
        raise InputError(f"beta is {beta}; of the combination quantile it is the level, from 0 to 1")
    if not np.isfinite(beta) or beta < 0:
        raise InputError(f"beta is {beta}; expected a finite number of 0 or more")


def with_combination(model: "RewardModel", combination: str, beta: float | None) -> "RewardModel":
    """Returns a model whose members are combined in this way; empty and None: as it is.

    Raises:
      InputError: there is no such combination, or the model's head has one member.
    """
    if not combination and beta is None:
        return model
    head = model.head
    combination, beta = combination or head.combination, head.beta if beta is None else beta
    check_combination(combination, beta)
    if head.members == 1:
        raise InputError(
            f"combination is {combination!r}, and the model's reward head has one member: remove it, or train with "
            "config.model.head_members above 1"
        )
    return dataclasses.replace(model, head=dataclasses.replace(head, combination=combination, beta=float(beta)))


def mean_kernel(kernel: jax.Array, members: int) -> jax.Array:
    """Returns the kernel [D, A] of the mean reward of members with the kernel [D, K·A]."""
    return kernel.reshape(kernel.shape[0], members, -1).mean(axis=1)


def fit(kernel: jax.Array, found: int, expected: int) -> jax.Array:
    """Returns the kernel [D, K·A] of `expected` members; those of a head of one member are copies of it."""
    return jnp.tile(kernel, (1, expected)) if found == 1 else kernel


def write(directory: pathlib.Path, head: HeadConfig, params: Mapping[str, Any]) -> None:
    """Writes `FILE` with what a Hugging Face head does not hold of the parameters of an uncertain head.

    It has the kernel of several members as [K, A, D], and factor [D, D] and offset [D] of a Laplace approximation.
    """
    kernel = params["kernel"]
    tensors = {}
    if head.members > 1:
        stacked = np.asarray(kernel, np.float32).reshape(kernel.shape[0], head.members, -1)
        tensors[_KERNEL] = np.ascontiguousarray(stacked.transpose(1, 2, 0))
    if head.laplace:
        for name in ("factor", "offset"):
            tensors[f"laplace.{name}"] = np.ascontiguousarray(params["laplace"][name], np.float32)
    if tensors:
        (directory / FILE).touch()
        mode = (directory / FILE).stat().st_mode  # follows the umask; that of `save_file` does not
        save_file(tensors, directory / FILE)
        (directory / FILE).chmod(mode)


def read(directory: pathlib.Path, head: HeadConfig, size: int) -> dict[str, Any]:
    """Returns what `FILE` holds of a head that reads `size` features: `kernel` [D, K·A], `laplace`.

    Raises:
      InputError: the file is missing or does not fit the head.
    """
    path, found = directory / FILE, dict[str, Any]()
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); rmjax.json names members or a Laplace factor, which are there: copy "
            "the artifact again"
        ) from error
    expected: dict[str, tuple[int, ...]] = {}
    if head.members > 1:
        expected[_KERNEL] = (head.members, len(head.attributes), size)
    if head.laplace:
        expected |= {_FACTOR: (size, size), _OFFSET: (size,)}
    for name, shape in expected.items():
        if (array := tensors.get(name)) is None or array.shape != shape or not np.isfinite(array).all():
            shown = "missing" if array is None else f"of shape {array.shape}, or not finite"
            raise InputError(f"{path}: the tensor {name!r} is {shown}; expected {shape}: export the model again")
    if head.members > 1:
        found["kernel"] = tensors[_KERNEL].transpose(2, 0, 1).reshape(size, -1)
    if head.laplace:
        found["laplace"] = {"factor": tensors[_FACTOR], "offset": tensors[_OFFSET]}
    return found
