"""Low-rank adapters (LoRA): y = x · W + scale · x · A · B, with A and B beside each matrix W in the parameter tree.

Hu et al. 2021, arXiv 2106.09685. With `dora`, y is also multiplied by m / ‖W + scale · A · B‖, where m is trained and
the norm is that of each column (Liu et al. 2024, arXiv 2402.09353, eq. 5). Axis letters: L layers, I inputs, O outputs
of a linear map, R rank.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rmjax.core import pytree
from rmjax.core.config import Config
from rmjax.core.errors import InputError

A, B = "lora_a", "lora_b"  # names of the adapter's matrices, [L, I, R] and [L, R, O], beside `kernel` [L, I, O]
M = "lora_magnitude"  # [L, O], if `LoraConfig.dora`
PATTERN = rf"/({A}|{B}|{M})$"
# Without the matrices of experts and of their routers, which PEFT does not adapt either.
_MATRIX = re.compile(r"decoder/.*layers/(?!mlp/(experts|router|shared_weight)/).*kernel$")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The adapters of a model: values of the section `config.lora`."""

    rank: int
    alpha: float
    rslora: bool = False  # scale alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732) rather than alpha / rank
    dora: bool = False
    targets: str = ""  # regex, searched in the paths of the layers' matrices; empty: all

    @classmethod
    def from_config(cls, config: Config) -> "LoraConfig | None":
        """Returns the values of `config.lora`; None if its rank is 0."""
        options = {field.name: config[field.name] for field in dataclasses.fields(cls)}
        return cls(**options) if config.rank else None

    @property
    def scale(self) -> float:
        """The factor of x · A · B."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def init(params: dict[str, Any], config: LoraConfig, key: jax.Array) -> dict[str, Any]:
    """Returns new adapters for `params`: float32, A uniform within ±1/sqrt(I) as in PEFT, B zero, m the columns' norms.

    Raises:
      InputError: `config.targets` is not a regex, or matches no matrix.
    """
    matrices = {path: leaf for path, leaf in pytree.flatten(params).items() if _MATRIX.fullmatch(path)}
    try:
        targets = [path for path in matrices if re.search(config.targets, path)]
    except re.error as error:
        raise InputError(f"config.lora.targets is {config.targets!r}, not a regular expression ({error})") from error
    if not targets:
        raise InputError(
            f"config.lora.targets is {config.targets!r}, which matches none of the matrices: {', '.join(matrices)}"
        )
    adapters = {}
    keys = jax.random.split(jax.random.fold_in(key, 1), len(targets))  # `key` itself is that of other parameters
    for path, subkey in zip(targets, keys, strict=True):
        *stack, inputs, outputs = matrices[path].shape
        shape, bound = (*stack, inputs, config.rank), 1 / math.sqrt(inputs)
        module = path.removesuffix("kernel")
        adapters[module + A] = jax.random.uniform(subkey, shape, jnp.float32, -bound, bound)
        adapters[module + B] = jnp.zeros((*stack, config.rank, outputs), jnp.float32)
        if config.dora:
            adapters[module + M] = column_norms(matrices[path].astype(jnp.float32))
    return pytree.unflatten(adapters)


def is_adapter(path: str) -> bool:
    """Returns whether the parameter at `path` belongs to an adapter."""
    return re.search(PATTERN, path) is not None


def merge(params: dict[str, Any], config: LoraConfig) -> dict[str, Any]:
    """Returns the parameters with the sums W + scale · A · B, with DoRA times m / norm, in place of W and its adapter.

    They are computed in float32, and have W's dtype.
    """

    @jax.jit
    def merged(kernel: jax.Array, a: jax.Array, b: jax.Array, magnitude: jax.Array | None) -> jax.Array:
        total = add_product(kernel.astype(jnp.float32), a, b, config.scale)
        if magnitude is not None:
            total = total * (magnitude / column_norms(total))[..., None, :]
        return total.astype(kernel.dtype)

    adapters, rest = pytree.split(params, is_adapter)
    leaves = pytree.flatten(adapters)
    kernels = pytree.flatten(rest)
    for path, a in leaves.items():
        if path.endswith(A):
            kernel = path.removesuffix(A) + "kernel"
            sharding = kernels[kernel].sharding
            b, magnitude = (leaves.get(path.removesuffix(A) + name) for name in (B, M))
            kernels[kernel] = jax.device_put(merged(kernels[kernel], a, b, magnitude), sharding)
    return pytree.unflatten(kernels)


def add_product(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    """Returns W + scale · A · B, float32 [..., I, O]."""
    return kernel + scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def column_norms(matrix: jax.Array) -> jax.Array:
    """Returns the norms of the columns of [..., I, O], float32 [..., O]; above 0, so that zeros stay zeros."""
    return jnp.maximum(jnp.linalg.norm(matrix, axis=-2), 1e-30)


def attach(module: Any, adapters: dict[str, Any], scale: float) -> None:
    """Sets the attribute `adapter` of each `Linear` within `module` that has matrices in the tree `adapters`."""
    if A in adapters:
        module.adapter = nnx.data((adapters[A], adapters[B], adapters.get(M), scale))
        return
    for name, value in adapters.items():
        attach(getattr(module, name), value, scale)
