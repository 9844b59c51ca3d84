"""Rotary position embeddings: the frequencies of all kinds of scaling, and the rotation.

Axis letters: B rows, T tokens, P head dimension, R rotated dimensions of a head.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All frequencies are divided by `factor`."""

    rope_type: ClassVar[str] = "linear"
    factor: float


@dataclasses.dataclass(frozen=True)
class DynamicScaling:
    """Scaling for conversations of more than the decoder's `max_positions` tokens; there are none here."""

    rope_type: ClassVar[str] = "dynamic"
    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3's scaling.

    Wavelengths above original_max / low_freq_factor are multiplied by `factor`, those below original_max /
    high_freq_factor are unchanged, and between the two the frequencies are interpolated.
    """

    rope_type: ClassVar[str] = "llama3"
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): low frequencies are divided by `factor`, high ones are unchanged."""

    rope_type: ClassVar[str] = "yarn"
    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0  # rotations within the original length from which a frequency is unchanged
    beta_slow: float = 1.0  # rotations up to which it is divided by `factor`
    truncate: bool = True  # round the bounds outwards
    attention_factor: float | None = None  # of cos and sin; None: by `mscale` and `factor`
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def cos_factor(self) -> float:
        """Returns the factor of cos and sin."""
        if self.attention_factor is not None:
            return self.attention_factor
        mscale = lambda m: 0.1 * m * math.log(self.factor) + 1 if self.factor > 1 else 1.0
        if self.mscale and self.mscale_all_dim:
            return mscale(self.mscale) / mscale(self.mscale_all_dim)
        return mscale(1.0)


@dataclasses.dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753): each frequency is divided by its own factor.

    `long_factor` is for models of conversations beyond the original length, `short_factor` for others. transformers
    chooses by the longest conversation of a batch; here the choice is fixed by `DecoderConfig.rope_length`, so that a
    reward does not depend on the others.
    """

    rope_type: ClassVar[str] = "longrope"
    short_factor: tuple[float, ...]  # [R/2]
    long_factor: tuple[float, ...]  # [R/2]
    original_max_position_embeddings: int
    factor: float  # of the length
    attention_factor: float | None = None  # of cos and sin; None: by `factor`

    def cos_factor(self) -> float:
        """Returns the factor of cos and sin."""
        if self.attention_factor is not None:
            return self.attention_factor
        length = self.original_max_position_embeddings
        return math.sqrt(1 + math.log(self.factor) / math.log(length)) if self.factor > 1 else 1.0


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling


def rope_frequencies(dims: int, theta: float, scaling: RopeScaling | None, length: int) -> tuple[jax.Array, float]:
    """Returns the angular frequencies theta^(-2i/R), float32 [R/2], and the factor of cos and sin.

    Su et al. 2021, arXiv 2104.09864.

    Args:
      dims: R.
      length: maximum length of a conversation, by which `LongRopeScaling` is fixed.
    """
    frequency = theta ** (-jnp.arange(0, dims, 2, dtype=jnp.float32) / dims)
    match scaling:
        case LinearScaling():
            return frequency / scaling.factor, 1.0
        case Llama3Scaling():
            wavelength = 2 * math.pi / frequency
            low, high = scaling.low_freq_factor, scaling.high_freq_factor
            unscaled = (scaling.original_max_position_embeddings / wavelength - low) / (high - low)
            unscaled = jnp.clip(unscaled, 0.0, 1.0)
            return unscaled * frequency + (1.0 - unscaled) * frequency / scaling.factor, 1.0
        case YarnScaling():
            scaled = _yarn_ramp(dims, theta, scaling)
            return frequency / scaling.factor * scaled + frequency * (1 - scaled), scaling.cos_factor()
        case LongRopeScaling():
            long = length > scaling.original_max_position_embeddings
            factors = jnp.asarray(scaling.long_factor if long else scaling.short_factor, jnp.float32)
            return frequency / factors, scaling.cos_factor()
    return frequency, 1.0


def _yarn_ramp(dims: int, theta: float, scaling: YarnScaling) -> jax.Array:
    """Returns how much each frequency is scaled, from 0 to 1, float32 [R/2]."""
    original = scaling.original_max_position_embeddings
    # The index of the frequency that makes `rotations` rotations within the original length.
    index = lambda rotations: dims * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))
    low, high = index(scaling.beta_fast), index(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    width = high - low or 0.001
    return jnp.clip((jnp.arange(dims // 2, dtype=jnp.float32) - low) / width, 0.0, 1.0)


def rope_tables(position: jax.Array, frequency: jax.Array, factor: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Returns cos and sin of position · frequency, times `factor`, float32 [B, T, 1, R/2].

    Always float32: bfloat16 rounds position 257 to 256.
    """
    angle = position[..., None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos, sin) if factor == 1.0 else (factor * cos, factor * sin)


def rotate(x: jax.Array, rope: tuple[jax.Array, jax.Array] | None, interleaved: bool = False) -> jax.Array:
    """Returns x [B, T, heads, P] with the pairs of its first R dimensions rotated by their angles.

    Args:
      rope: cos and sin, [B, T, 1, R/2] each; None: x is returned as it is.
      interleaved: the pairs are (x_2i, x_2i+1); otherwise (x_i, x_i+R/2), the half-split layout.
    """
    if rope is None:
        return x
    cos, sin = rope
    dims = 2 * cos.shape[-1]
    rotated = (x if dims == x.shape[-1] else x[..., :dims]).astype(jnp.float32)
    pairs = (rotated[..., ::2], rotated[..., 1::2]) if interleaved else jnp.split(rotated, 2, axis=-1)
    first, second = pairs[0] * cos - pairs[1] * sin, pairs[1] * cos + pairs[0] * sin
    if interleaved:
        y = jnp.stack([first, second], axis=-1).reshape(rotated.shape).astype(x.dtype)
    else:
        y = jnp.concatenate([first, second], axis=-1).astype(x.dtype)
    return y if dims == x.shape[-1] else jnp.concatenate([y, x[..., dims:]], axis=-1)
