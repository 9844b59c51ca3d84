"""The layers of a decoder, as Flax NNX modules.

Axis letters: B rows, T tokens, D model, N query heads, H key/value heads, P head dimension, F mlp, L layers,
V vocabulary.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from rmjax.core.mesh import ROWS, constrain
from rmjax.models.architecture import DecoderConfig, RopeScaling
from rmjax.models.attention.blocks import Mask, attend, keep
from rmjax.models.matmul import dot

Dtype = jnp.dtype


class RMSNorm(nnx.Module):
    """y = x / sqrt(mean(x²) + eps) · scale, in float32 (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4)."""

    def __init__(self, size: int, eps: float, param_dtype: Dtype):
        self.scale = nnx.Param(jnp.ones(size, param_dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse).astype(x.dtype) * self.scale[...].astype(x.dtype)


class Linear(nnx.Module):
    """y = x · kernel (+ bias), with operands in `x`'s dtype and float32 accumulation."""

    def __init__(self, inputs: int, outputs: int, bias: bool, std: float, param_dtype: Dtype, rngs: nnx.Rngs):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (inputs, outputs), param_dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, param_dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = dot(x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> jax.Array:
    """Returns the angular frequencies theta^(-2i/P), float32 [P/2] (Su et al. 2021, arXiv 2104.09864).

    With Llama 3's `scaling`, wavelengths beyond original_max / low_freq_factor are stretched by `factor`, those below
    original_max / high_freq_factor are kept, and between the two the frequencies are interpolated.
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = (scaling.original_max_position_embeddings / wavelength - low) / (high - low)
    kept = jnp.clip(kept, 0.0, 1.0)
    return kept * frequency + (1.0 - kept) * frequency / scaling.factor


def rope_tables(position: jax.Array, frequency: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns cos and sin of position · frequency, float32 [B, T, 1, P/2].

    Float32 whatever the model's dtype: bfloat16 cannot tell position 257 from 256.
    """
    angle = position[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the pairs (x_i, x_{i+P/2}) of x [B, T, heads, P] by the tables' angles (the half-split layout)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query self-attention over packed prefix trees."""

    def __init__(self, config: DecoderConfig, param_dtype: Dtype, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, config.attention_bias, config.initializer_range, param_dtype, rngs)

        self.query = linear(config.hidden_size, config.num_heads * config.head_dim)
        self.key = linear(config.hidden_size, config.num_kv_heads * config.head_dim)
        self.value = linear(config.hidden_size, config.num_kv_heads * config.head_dim)
        self.output = linear(config.num_heads * config.head_dim, config.hidden_size)
        self.head_dim = config.head_dim

    def __call__(self, x: jax.Array, mask: Mask, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = keep(rotate(self.query(x).reshape(heads), *rope))
        k = keep(rotate(self.key(x).reshape(heads), *rope))
        v = keep(self.value(x).reshape(heads))
        return self.output(attend(q, k, v, mask).reshape(*x.shape[:2], -1))


class GatedMLP(nnx.Module):
    """y = (silu(x · gate) ∘ (x · up)) · down (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, param_dtype: Dtype, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, config.mlp_bias, config.initializer_range, param_dtype, rngs)

        self.gate = linear(config.hidden_size, config.intermediate_size)
        self.up = linear(config.hidden_size, config.intermediate_size)
        self.down = linear(config.intermediate_size, config.hidden_size)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(keep(self.gate(x))) * keep(self.up(x)))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x is [B, T, D]."""

    def __init__(self, config: DecoderConfig, param_dtype: Dtype, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps, param_dtype)
        self.attention = Attention(config, param_dtype, rngs)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps, param_dtype)
        self.mlp = GatedMLP(config, param_dtype, rngs)

    def __call__(self, x: jax.Array, mask: Mask, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
        x = keep(x + self.attention(self.attention_norm(x), mask, rope))
        x = x + self.mlp(self.mlp_norm(x))
        return constrain(x, ROWS, "sequence", None)


class Embedding(nnx.Module):
    """Token embeddings: weight [V, D]."""

    def __init__(self, config: DecoderConfig, param_dtype: Dtype, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_size)
        self.weight = nnx.Param(config.initializer_range * jax.random.normal(rngs.params(), shape, param_dtype))

    def __call__(self, tokens: jax.Array, dtype: Dtype) -> jax.Array:
        return self.weight[...].astype(dtype)[tokens]
