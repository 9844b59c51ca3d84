"""The decoder's layers, as Flax NNX modules.

Axis letters: B rows, T tokens, D model, N query heads, H key/value heads, P head dimension, F MLP, L layers.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from rmjax.core.mesh import ROWS, constrain
from rmjax.models.architecture import DecoderConfig, RopeScaling
from rmjax.models.attention import Mask, attend, save_for_backward
from rmjax.models.matmul import dot


def _in_float32(operation: Callable[..., jax.Array], x: jax.Array, vector: jax.Array) -> jax.Array:
    """Returns operation(x, vector) with both in x's dtype; the gradient of `vector` is summed in float32.

    Operands in x's dtype would give the same result, but sum the gradient over all tokens in that dtype.
    """
    return operation(x.astype(jnp.float32), vector.astype(x.dtype).astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """y = x / sqrt(mean(x²) + eps) · scale, in float32 (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4)."""

    def __init__(self, size: int, eps: float, param_dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones(size, param_dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return _in_float32(jnp.multiply, (x32 * inverse).astype(x.dtype), self.scale[...])


class Linear(nnx.Module):
    """y = x · kernel (+ scale · x · A · B) (+ bias) in x's dtype, accumulated in float32.

    Attributes:
      adapter: A, B and scale of `rmjax.models.lora`, or None.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, std: float, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (inputs, outputs), param_dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, param_dtype)) if bias else None
        self.adapter: tuple[jax.Array, jax.Array, float] | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = dot(x, self.kernel[...])
        if self.adapter is not None:
            a, b, scale = self.adapter
            y = y + scale * dot(dot(x, a), b)
        return y if self.bias is None else _in_float32(jnp.add, y, self.bias[...])


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> jax.Array:
    """Returns the angular frequencies theta^(-2i/P), float32 [P/2] (Su et al. 2021, arXiv 2104.09864).

    With Llama 3's `scaling`, wavelengths above original_max / low_freq_factor are multiplied by `factor`, those below
    original_max / high_freq_factor are unchanged, and between the two the frequencies are interpolated.
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    unscaled = (scaling.original_max_position_embeddings / wavelength - low) / (high - low)
    unscaled = jnp.clip(unscaled, 0.0, 1.0)
    return unscaled * frequency + (1.0 - unscaled) * frequency / scaling.factor


def rope_tables(position: jax.Array, frequency: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns cos and sin of position · frequency, float32 [B, T, 1, P/2].

    Always float32: bfloat16 rounds position 257 to 256.
    """
    angle = position[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Returns x [B, T, heads, P] with each pair (x_i, x_{i+P/2}) rotated by its angle (half-split layout)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query self-attention over packed prefix trees (Ainslie et al. 2023, arXiv 2305.13245)."""

    def __init__(self, config: DecoderConfig, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        bias, std = config.attention_bias, config.initializer_range
        linear = functools.partial(Linear, bias=bias, std=std, param_dtype=param_dtype, rngs=rngs)
        self.query = linear(config.hidden_size, config.num_heads * config.head_dim)
        self.key = linear(config.hidden_size, config.num_kv_heads * config.head_dim)
        self.value = linear(config.hidden_size, config.num_kv_heads * config.head_dim)
        self.output = linear(config.num_heads * config.head_dim, config.hidden_size)
        self.head_dim = config.head_dim

    def __call__(self, x: jax.Array, mask: Mask, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = save_for_backward(rotate(self.query(x).reshape(heads), *rope))
        k = save_for_backward(rotate(self.key(x).reshape(heads), *rope))
        v = save_for_backward(self.value(x).reshape(heads))
        return self.output(attend(q, k, v, mask).reshape(*x.shape[:2], -1))


class GatedMLP(nnx.Module):
    """y = (silu(x · gate) * (x · up)) · down (SwiGLU; Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        bias, std = config.mlp_bias, config.initializer_range
        linear = functools.partial(Linear, bias=bias, std=std, param_dtype=param_dtype, rngs=rngs)
        self.gate = linear(config.hidden_size, config.intermediate_size)
        self.up = linear(config.hidden_size, config.intermediate_size)
        self.down = linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(save_for_backward(self.gate(x))) * save_for_backward(self.up(x)))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x is [B, T, D]."""

    def __init__(self, config: DecoderConfig, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps, param_dtype)
        self.attention = Attention(config, param_dtype, rngs)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps, param_dtype)
        self.mlp = GatedMLP(config, param_dtype, rngs)

    def __call__(self, x: jax.Array, mask: Mask, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
        x = save_for_backward(x + self.attention(self.attention_norm(x), mask, rope))
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, ROWS, "sequence", None)
