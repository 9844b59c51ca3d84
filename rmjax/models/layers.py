"""The decoder's layers, as Flax NNX modules.

Axis letters: B rows, T tokens, D model, N query heads, H key/value heads, P head dimension, F MLP, L layers.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rmjax.core.mesh import ROWS, constrain
from rmjax.models import int8, lora
from rmjax.models.architecture import DecoderConfig
from rmjax.models.attention import Mask, attend, save_for_backward
from rmjax.models.matmul import dot
from rmjax.models.rope import rotate

Rope = tuple[jax.Array, jax.Array] | None  # cos and sin of `rope_tables`; None: no rotation

ACTIVATION: dict[str, Callable[[jax.Array], jax.Array]] = {
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


class LayerNorm(nnx.Module):
    """y = (x - mean(x)) / sqrt(var(x) + eps) · (offset + scale) (+ bias), in float32 (Ba et al. 2016, 1607.06450).

    The offset is `norm_offset`. Only y is rounded to x's dtype.
    """

    def __init__(self, size: int, config: DecoderConfig, param_dtype: jnp.dtype):
        self.offset, self.eps = config.norm_offset, config.norm_eps
        self.scale = nnx.Param(jnp.full(size, 1.0 - self.offset, param_dtype))
        self.bias = nnx.Param(jnp.zeros(size, param_dtype)) if config.norm_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        centered = x.astype(jnp.float32)
        centered = centered - jnp.mean(centered, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + self.eps)
        as_stored = lambda vector: vector[...].astype(x.dtype).astype(jnp.float32)
        y = centered * inverse * (self.offset + as_stored(self.scale))
        return (y if self.bias is None else y + as_stored(self.bias)).astype(x.dtype)


Norm = RMSNorm | LayerNorm


def make_norm(size: int, config: DecoderConfig, param_dtype: jnp.dtype) -> Norm:
    """Returns a norm of the config's kind."""
    return (LayerNorm if config.layer_norm else RMSNorm)(size, config, param_dtype)


class Linear(nnx.Module):
    """y = x · kernel (+ scale · x · A · B) (+ bias) in x's dtype, accumulated in float32.

    The kernel may be a matrix of `rmjax.models.int8`, which is not trained.

    Attributes:
      adapter: A, B, magnitude (or None) and scale of `rmjax.models.lora`, or None.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, std: float, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (inputs, outputs), param_dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, param_dtype)) if bias else None
        self.adapter: tuple[jax.Array, jax.Array, jax.Array | None, float] | None = None

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel: Any = self.kernel.get_value()
        y = int8.dot(x, kernel) if int8.is_matrix(kernel) else dot(x, kernel)
        if self.adapter is not None:
            a, b, magnitude, scale = self.adapter
            y = y + scale * dot(dot(x, a), b)
            if magnitude is not None:
                w = int8.to_float32(kernel) if int8.is_matrix(kernel) else kernel.astype(jnp.float32)
                # The norm has no gradient (DoRA, section 4.3).
                norm = jax.lax.stop_gradient(lora.column_norms(lora.add_product(w, a, b, scale)))
                y = _in_float32(jnp.multiply, y, magnitude / norm)
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
        self.query_norm = make_norm(size(query), config, param_dtype) if config.qk_norm else None
        self.key_norm = make_norm(size(key_value), config, param_dtype) if config.qk_norm else None
        self.config = config

    def __call__(self, x: jax.Array, mask: Mask, rope: Rope) -> jax.Array:
        config = self.config
        heads = (*x.shape[:2], -1, config.head_dim)

        def project(linear: Linear, norm: Norm | None) -> jax.Array:
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

    def __init__(self, config: DecoderConfig, param_dtype: jnp.dtype, rngs: nnx.Rngs, size: int = 0):
        bias, std, size = config.mlp_bias, config.initializer_range, size or config.intermediate_size
        linear = functools.partial(Linear, bias=bias, std=std, param_dtype=param_dtype, rngs=rngs)
        self.gate = linear(config.hidden_size, size) if config.mlp_gated else None
        self.up = linear(config.hidden_size, size)
        self.down = linear(size, config.hidden_size)
        self.activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        activation = ACTIVATION[self.activation]
        if self.gate is None:
            return self.down(activation(save_for_backward(self.up(x))))
        return self.down(activation(save_for_backward(self.gate(x))) * save_for_backward(self.up(x)))


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); x is [B, T, D]. In parallel both read x.

    The config chooses norms of the inputs, of the outputs before the sum, or both; `mlp` makes the MLP.
    """

    def __init__(
        self, config: DecoderConfig, param_dtype: jnp.dtype, rngs: nnx.Rngs, mlp: Callable[..., nnx.Module] = MLP
    ):
        norm = lambda used: make_norm(config.hidden_size, config, param_dtype) if used else None
        self.attention_norm, self.attention_output_norm = norm(config.pre_norms), norm(config.post_norms)
        self.attention = Attention(config, param_dtype, rngs)
        self.mlp_norm = norm(config.pre_norms and config.parallel != "one")
        self.mlp_output_norm = norm(config.post_norms)
        self.mlp = mlp(config, param_dtype, rngs)
        self.residual_scale, self.parallel = config.residual_scale, config.parallel

    def __call__(self, x: jax.Array, mask: Mask, rope: Rope) -> jax.Array:
        read = x if self.attention_norm is None else self.attention_norm(x)
        total = self._add(x, self.attention(read, mask, rope), self.attention_output_norm)
        if not self.parallel:
            total = x = save_for_backward(total)
        if self.parallel != "one":
            read = x if self.mlp_norm is None else self.mlp_norm(x)
        return constrain(self._add(total, self.mlp(read), self.mlp_output_norm), ROWS, "sequence", None)

    def _add(self, x: jax.Array, y: jax.Array, norm: Norm | None) -> jax.Array:
        if norm is not None:
            y = norm(save_for_backward(y))
        return x + y if self.residual_scale == 1.0 else x + self.residual_scale * y
