"""The decoder and the reward model, as pure functions of nested dicts of parameters.

Flax NNX modules are used inside `rmjax.models` only: here their parameters become nested dicts of arrays, with the
layers stacked along a leading axis L. Axis letters: B rows, T tokens, R readouts, A attributes, D model.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rmjax.core import pytree
from rmjax.core.mesh import ROWS, constrain
from rmjax.models import lora
from rmjax.models.architecture import DecoderConfig, HeadConfig, LayerGroup, LayerKind
from rmjax.models.attention import SAVED, choose_kernel, make_mask
from rmjax.models.layers import Block, RMSNorm, Rope
from rmjax.models.lora import LoraConfig
from rmjax.models.rope import rope_frequencies, rope_tables

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """The computation of a decoder with a reward head, without its parameters.

    `remat` is what the backward pass recomputes. `none`: nothing; `small`: everything except matrix products and
    attention, which needs less memory and on CPU is faster than `none`; `layer`: whole layers, for the least memory.
    """

    decoder: DecoderConfig
    head: HeadConfig
    dtype: str = "float32"  # of activations and matrix products
    # Of the parameters in files and in the computation, whatever the dtype of the arrays that hold them: training holds
    # them in float32, so that small updates add up. The head's are float32: in bfloat16, similar rewards would tie.
    param_dtype: str = "float32"
    attention: str = "auto"  # or a key of `rmjax.models.attention.KERNELS`
    remat: str = "small"
    scan_layers: bool = True  # run the layers by one `lax.scan`; False: unroll them
    family: str = "llama"  # a key of `rmjax.models.families.FAMILIES`; determines the file formats only
    lora: LoraConfig | None = None  # adapters, which are added to the parameters; None: none

    def init(self, key: jax.Array) -> Params:
        """Returns random parameters: normal matrices (std `initializer_range`; the head's: `head.init`), unit norms."""
        config = self.decoder
        embedding_key, layers_key, head_key = jax.random.split(key, 3)
        embedding_key = nnx.Rngs(embedding_key).params()  # the key that an NNX module would draw
        embedding = jax.random.normal(embedding_key, (config.vocab_size, config.hidden_size), self.param_dtype)
        layers = jax.vmap(lambda key: _parameters(self._block(key)))(jax.random.split(layers_key, config.num_layers))
        head = jax.random.normal(head_key, (config.hidden_size, len(self.head.attributes)), jnp.float32)
        decoder = {
            "embedding": {"weight": config.initializer_range * embedding},
            "layers": layers,
            "norm": _parameters(self._norm()),
        }
        params = {"decoder": decoder, "head": {"kernel": self.head.init * head}}
        return params if self.lora is None else pytree.merge(params, lora.init(params, self.lora, key))

    def hidden(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        """Returns the final norm's output [B, T, D] for `tokens`, `group`, `branch`, `position`, int32 [B, T] each."""
        decoder, config = params["decoder"], self.decoder
        kernel = choose_kernel(self.attention, batch["tokens"].shape[1])
        kinds = set(config.kinds)
        mask = lambda window: make_mask(batch["group"], batch["branch"], batch["position"], kernel, window)
        masks = {window: mask(window) for window in sorted({kind.window for kind in kinds})}
        ropes = {kind: self._rope(kind, batch["position"]) for kind in sorted(kinds, key=str)}
        embedded = self._round(decoder["embedding"]["weight"][batch["tokens"]])
        x = embedded.astype(self.dtype)  # cast last: gradients add in float32
        if config.embedding_scale != 1.0:
            x = x * jnp.asarray(config.embedding_scale, x.dtype)
        x = constrain(x, ROWS, "sequence", None)

        def layer(x: jax.Array, layer_params: Params, kind: LayerKind) -> jax.Array:
            adapters, weights = pytree.split(layer_params, lora.is_adapter)  # adapters stay float32
            block = _bind(lambda: self._block(jax.random.key(0)), self._round(weights))
            lora.attach(block, adapters, self.lora.scale if self.lora else 1.0)
            return block(x, masks[kind.window], ropes[kind])

        if self.remat != "none":
            policy = jax.checkpoint_policies.save_only_these_names(*(() if self.remat == "layer" else (SAVED,)))
            layer = jax.checkpoint(layer, policy=policy, static_argnums=2)
        for group in config.layer_groups():
            x = self._scan(layer, x, decoder["layers"], group)
        return _bind(self._norm, self._round(decoder["norm"]))(x)

    def rewards(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        """Returns the rewards float32 [B, R, A] at the tokens `readout_index`, int32 [B, R].

        Values at unused readouts are undefined; mask with `readout_group > 0`.
        """
        hidden = self.hidden(params, batch)
        read = jnp.take_along_axis(hidden, batch["readout_index"][..., None], axis=1).astype(jnp.float32)
        kernel = params["head"]["kernel"]
        # Highest precision: on TPU the default would round the float32 operands to bfloat16.
        rewards = jnp.einsum("brd,da->bra", read, kernel, precision=jax.lax.Precision.HIGHEST)
        if self.head.scale:
            rewards = rewards * jnp.asarray(self.head.scale, jnp.float32)
        return rewards + jnp.asarray(self.head.shift, jnp.float32) if self.head.shift else rewards

    def _rope(self, kind: LayerKind, position: jax.Array) -> Rope:
        """Returns cos and sin of the rotation in layers of a kind; None if there is none."""
        config, own = self.decoder, kind.rope_theta
        if not kind.rotary:
            return None
        theta, scaling = (own, None) if own else (config.rope_theta, config.rope_scaling)
        length = config.rope_length or config.max_positions
        return rope_tables(position, *rope_frequencies(config.rotary_dim or config.head_dim, theta, scaling, length))

    def _scan(self, layer: Callable[..., jax.Array], x: jax.Array, stacked: Params, group: LayerGroup) -> jax.Array:
        """Returns x after the layers of a group; `stacked` has the parameters of all layers."""
        period = len(group.kinds)
        end = group.start + group.repeats * period
        split = lambda leaf: leaf[group.start : end].reshape(group.repeats, period, *leaf.shape[1:])

        unroll = 1 if self.scan_layers else group.repeats
        if group.repeats == self.decoder.num_layers:  # as they are: XLA copies reshaped arrays before the loop
            return jax.lax.scan(lambda x, params: (layer(x, params, group.kinds[0]), None), x, stacked, unroll=unroll)[
                0
            ]

        def step(x: jax.Array, params: Params) -> tuple[jax.Array, None]:
            for i, kind in enumerate(group.kinds):
                x = layer(x, jax.tree.map(lambda leaf, i=i: leaf[i], params), kind)
            return x, None

        return jax.lax.scan(step, x, jax.tree.map(split, stacked), unroll=unroll)[0]

    def _round(self, params: Any) -> Any:
        """Returns parameters rounded to `param_dtype`, in their own dtype; gradients pass unchanged."""
        stored = jnp.finfo(self.param_dtype)

        def round_one(x: jax.Array) -> jax.Array:
            if stored.bits >= min(jnp.finfo(self.dtype).bits, jnp.finfo(x.dtype).bits):
                return x  # every use casts it to `dtype`, which rounds as much
            # XLA would remove a cast to bfloat16 and back.
            rounded = jax.lax.reduce_precision(x, stored.nexp, stored.nmant)
            return x + jax.lax.stop_gradient(rounded - x)  # exactly `rounded`

        return jax.tree.map(round_one, params)

    def _block(self, key: jax.Array) -> Block:
        return Block(self.decoder, jnp.dtype(self.param_dtype), nnx.Rngs(key))

    def _norm(self) -> RMSNorm:
        return RMSNorm(self.decoder.hidden_size, self.decoder, jnp.dtype(self.param_dtype))


def _parameters(module: nnx.Module) -> Params:
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def _bind(make_module: Callable[[], Any], params: Params) -> Any:
    """Returns the module of `make_module` with the parameters `params`; its own are never computed."""
    graph = nnx.graphdef(nnx.eval_shape(make_module))
    return nnx.merge(graph, nnx.State(jax.tree.map(nnx.Param, params)))
