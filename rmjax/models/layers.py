"""The decoder's layers, as Flax NNX modules.

Axis letters: B rows, T tokens, D model, N query heads, H key/value heads, P head dimension, F MLP, L layers.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from rmjax.core.mesh import ROWS, constrain
from rmjax.models.architecture import DecoderConfig
from rmjax.models.attention import Mask, attend, save_for_backward
from rmjax.models.matmul import dot
from rmjax.models.rope import rotate

Rope = tuple[jax.Array, jax.Array] | None  # cos and sin of `rope_tables`; None: no rotation

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


def _in_float32(operation: Callable[..., jax.Array], x: jax.Array, vector: jax.Array) -> jax.Array:
    """Returns operation(x, vector) with both in x's dtype; the gradient of `vector` is summed in float32.

    Operands in x's dtype would give the same result, but sum the gradient over all tokens in that dtype.
    """
    return operation(x.astype(jnp.float32), vector.astype(x.dtype).astype(jnp.float32)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """y = x / sqrt(mean(x²) + eps) · (offset + scale), in float32 (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4).

    The offset is `norm_offset`. x / sqrt(…) is rounded to x's dtype, unless the config has `norm_float32`.
    """

    def __init__(self, size: int, config: DecoderConfig, param_dtype: jnp.dtype):
        self.offset = config.norm_offset
        self.scale = nnx.Param(jnp.full(size, 1.0 - self.offset, param_dtype))
        self.eps, self.round_last = config.norm_eps, config.norm_float32

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        if not self.round_last:
            assert not self.offset
            return _in_float32(jnp.multiply, (x32 * inverse).astype(x.dtype), self.scale[...])
        scale = self.scale[...].astype(x.dtype).astype(jnp.float32)
        return (x32 * inverse * (self.offset + scale)).astype(x.dtype)


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


class Attention(nnx.Module):
    """Grouped-query self-attention over packed prefix trees (Ainslie et al. 2023, arXiv 2305.13245)."""

    def __init__(self, config: DecoderConfig, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        bias, std = config.attention_bias, config.initializer_range
        output_bias = bias if config.output_bias is None else config.output_bias
        linear = functools.partial(Linear, std=std, param_dtype=param_dtype, rngs=rngs)
        query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = linear(config.hidden_size, query, bias)
        self.key = linear(config.hidden_size, key_value, bias)
        self.value = linear(config.hidden_size, key_value, bias)
        self.output = linear(query, config.hidden_size, output_bias)
        size = lambda outputs: config.head_dim if config.qk_norm == "head" else outputs
        self.query_norm = RMSNorm(size(query), config, param_dtype) if config.qk_norm else None
        self.key_norm = RMSNorm(size(key_value), config, param_dtype) if config.qk_norm else None
        self.config = config

    def __call__(self, x: jax.Array, mask: Mask, rope: Rope) -> jax.Array:
        config = self.config
        heads = (*x.shape[:2], -1, config.head_dim)

        def project(linear: Linear, norm: RMSNorm | None) -> jax.Array:
            y = linear(x)
            if norm is None:
                return save_for_backward(rotate(y.reshape(heads), rope, config.rotary_interleaved))
            y = save_for_backward(y)  # norm and rotation are recomputed
            y = norm(y.reshape(heads)) if config.qk_norm == "head" else norm(y).reshape(heads)
            return rotate(y, rope, config.rotary_interleaved)

        q, k = project(self.query, self.query_norm), project(self.key, self.key_norm)
        v = save_for_backward(self.value(x).reshape(heads))
        out = attend(q, k, v, mask, config.attention_scale or None, config.attention_softcap)
        return self.output(out.reshape(*x.shape[:2], -1))


class MLP(nnx.Module):
    """y = (f(x · gate) * (x · up)) · down (Shazeer 2020, arXiv 2002.05202), or f(x · up) · down; f: the activation."""

    def __init__(self, config: DecoderConfig, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        bias, std = config.mlp_bias, config.initializer_range
        linear = functools.partial(Linear, bias=bias, std=std, param_dtype=param_dtype, rngs=rngs)
        self.gate = linear(config.hidden_size, config.intermediate_size) if config.mlp_gated else None
        self.up = linear(config.hidden_size, config.intermediate_size)
        self.down = linear(config.intermediate_size, config.hidden_size)
        self.activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        activation = _ACTIVATIONS[self.activation]
        if self.gate is None:
            return self.down(activation(save_for_backward(self.up(x))))
        return self.down(activation(save_for_backward(self.gate(x))) * save_for_backward(self.up(x)))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x is [B, T, D].

    The config chooses norms of the inputs, of the outputs before the sum, or both.
    """

    def __init__(self, config: DecoderConfig, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        norm = lambda used: RMSNorm(config.hidden_size, config, param_dtype) if used else None
        self.attention_norm, self.attention_output_norm = norm(config.pre_norms), norm(config.post_norms)
        self.attention = Attention(config, param_dtype, rngs)
        self.mlp_norm, self.mlp_output_norm = norm(config.pre_norms), norm(config.post_norms)
        self.mlp = MLP(config, param_dtype, rngs)
        self.residual_scale = config.residual_scale

    def __call__(self, x: jax.Array, mask: Mask, rope: Rope) -> jax.Array:
        y = self.attention(x if self.attention_norm is None else self.attention_norm(x), mask, rope)
        x = save_for_backward(self._add(x, y, self.attention_output_norm))
        y = self.mlp(x if self.mlp_norm is None else self.mlp_norm(x))
        return constrain(self._add(x, y, self.mlp_output_norm), ROWS, "sequence", None)

    def _add(self, x: jax.Array, y: jax.Array, norm: RMSNorm | None) -> jax.Array:
        if norm is not None:
            y = norm(save_for_backward(y))
        return x + y if self.residual_scale == 1.0 else x + self.residual_scale * y
