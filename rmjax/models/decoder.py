"""The decoder and the reward model, as pure functions over nested dicts of parameters.

The modules of `rmjax.models.layers` are split once, here; what leaves this file is {path: array} as nested dicts, with
the layers stacked along a leading axis L.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rmjax.core.mesh import ROWS, constrain
from rmjax.models.architecture import DecoderConfig, HeadConfig
from rmjax.models.attention.blocks import KEPT, make_mask
from rmjax.models.layers import Block, Embedding, RMSNorm, rope_frequencies, rope_tables

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A decoder with a reward head: what to compute, apart from the parameters it is computed with.

    Attributes:
      dtype: of activations and matrix products.
      param_dtype: of stored parameters, except the head's, which is float32 always: in bfloat16 close rewards
        round into ties.
      attention: `auto`, `dense` or `blocks`; see `rmjax.models.attention.blocks`.
      remat: what the backward pass computes again. `small`: all but the matrix products and the attention, so less is
        held, and on CPU faster than `none`; `layer`: each layer whole, for the least memory; `none`: nothing.
      scan_layers: run the layers by one `lax.scan`; False unrolls them.
    """

    decoder: DecoderConfig
    head: HeadConfig
    dtype: str = "float32"
    param_dtype: str = "float32"
    attention: str = "auto"
    remat: str = "small"
    scan_layers: bool = True

    def init(self, key: jax.Array) -> Params:
        """Returns random parameters: normal(0, initializer_range) matrices, unit norms, and the head's own init."""
        embedding_key, layers_key, head_key = jax.random.split(key, 3)
        modules = self._modules()
        layers = jax.vmap(lambda key: _parameters(modules["block"](key)))(
            jax.random.split(layers_key, self.decoder.num_layers)
        )
        shape = (self.decoder.hidden_size, len(self.head.attributes))
        return {
            "decoder": {
                "embedding": _parameters(modules["embedding"](embedding_key)),
                "layers": layers,
                "norm": _parameters(modules["norm"]()),
            },
            "head": {"kernel": self.head.init * jax.random.normal(head_key, shape, jnp.float32)},
        }

    def hidden(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        """Returns the final norm's output [B, T, D] of packed rows (`tokens`, `group`, `branch`, `position`)."""
        modules, decoder, dtype = self._modules(), params["decoder"], jnp.dtype(self.dtype)
        mask = make_mask(batch["group"], batch["branch"], self.attention)
        rope = rope_tables(batch["position"], self._frequencies())
        embedding = _bind(lambda: modules["embedding"](jax.random.key(0)), decoder["embedding"])
        x = constrain(embedding(batch["tokens"], dtype), ROWS, "sequence", None)

        def layer(x: jax.Array, layer_params: Params) -> tuple[jax.Array, None]:
            return _bind(lambda: modules["block"](jax.random.key(0)), layer_params)(x, mask, rope), None

        if self.remat != "none":
            kept = () if self.remat == "layer" else (KEPT,)
            layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.save_only_these_names(*kept))
        x, _ = jax.lax.scan(layer, x, decoder["layers"], unroll=1 if self.scan_layers else self.decoder.num_layers)
        return _bind(modules["norm"], decoder["norm"])(x)

    def rewards(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        """Returns the rewards at each row's readouts, float32 [B, R, A]; unused readouts hold rubbish."""
        hidden = self.hidden(params, batch)
        read = jnp.take_along_axis(hidden, batch["readout_index"][..., None], axis=1).astype(jnp.float32)
        # Highest precision: on TPU the default would round the float32 operands to bfloat16.
        kernel = params["head"]["kernel"]
        rewards = jnp.einsum("brd,da->bra", read, kernel, precision=jax.lax.Precision.HIGHEST)
        if self.head.scale:
            rewards = rewards * jnp.asarray(self.head.scale, jnp.float32)
        return rewards + jnp.asarray(self.head.shift, jnp.float32) if self.head.shift else rewards

    def _frequencies(self) -> jax.Array:
        return rope_frequencies(self.decoder.head_dim, self.decoder.rope_theta, self.decoder.rope_scaling)

    def _modules(self) -> dict[str, Any]:
        config, param_dtype = self.decoder, jnp.dtype(self.param_dtype)
        return {
            "embedding": lambda key: Embedding(config, param_dtype, nnx.Rngs(key)),
            "block": lambda key: Block(config, param_dtype, nnx.Rngs(key)),
            "norm": lambda: RMSNorm(config.hidden_size, config.norm_eps, param_dtype),
        }


def _parameters(module: nnx.Module) -> Params:
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def _bind(make: Any, params: Params) -> nnx.Module:
    """Returns the module that `make()` would give, holding `params`; nothing is computed for it."""
    graph = nnx.graphdef(nnx.eval_shape(make))
    return nnx.merge(graph, nnx.State(jax.tree.map(nnx.Param, params)))
