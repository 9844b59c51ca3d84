"""The decoder and the reward model, as pure functions of nested dicts of parameters.

Flax NNX modules are used inside `rmjax.models` only: here their parameters become nested dicts of arrays, with the
layers stacked along a leading axis L. Axis letters: B rows, T tokens, R readouts, A attributes, D model.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rmjax.core import pytree
from rmjax.core.mesh import ROWS, constrain
from rmjax.models import int8, lora, members
from rmjax.models.architecture import DecoderConfig, HeadConfig, LayerKind
from rmjax.models.attention import SAVED, Mask, choose_kernel, make_mask
from rmjax.models.experts import RoutedMLP
from rmjax.models.layers import MLP, Block, Norm, Rope, make_norm
from rmjax.models.lora import LoraConfig
from rmjax.models.rope import rope_frequencies, rope_tables
from rmjax.models.sharding import mesh_platform

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
    scan_layers: bool | None = True  # run the layers by one `lax.scan`; False: unroll them; None: on a GPU only
    family: str = "llama"  # a key of `rmjax.models.families.FAMILIES`; determines the file formats only
    frozen_dtype: str = ""  # of the layers' matrices that are not trained: "int8", or "" for `param_dtype`
    mean_readout: bool = False  # the head reads the mean over the tokens of `readout_span`, not the last one's alone
    lora: LoraConfig | None = None  # adapters, which are added to the parameters; None: none

    def init(self, key: jax.Array) -> Params:
        """Returns random parameters: normal matrices (std `initializer_range`; the head's: `head.init`), unit norms."""
        config = self.decoder
        embedding_key, layers_key, head_key = jax.random.split(key, 3)
        embedding_key = nnx.Rngs(embedding_key).params()  # the key that an NNX module would draw
        embedding = jax.random.normal(embedding_key, (config.vocab_size, config.hidden_size), self.param_dtype)
        layers = jax.vmap(lambda key: _parameters(self._block(key)))(jax.random.split(layers_key, config.num_layers))
        decoder = {
            "embedding": {"weight": config.initializer_range * embedding},
            "layers": layers,
            "norm": _parameters(self._norm()),
        }
        if config.learned_positions:
            shape = (config.max_positions + config.position_offset, config.hidden_size)
            positions = jax.random.normal(jax.random.fold_in(embedding_key, 1), shape, self.param_dtype)
            decoder["position_embedding"] = {"weight": config.initializer_range * positions}
        params = {"decoder": decoder, "head": self.init_head(head_key)}
        return params if self.lora is None else pytree.merge(params, lora.init(params, self.lora, key))

    def shapes(self, quantized: bool = False) -> Params:
        """Returns the shapes and dtypes of the parameters, or of what `int8.quantize` makes of them."""
        found = jax.tree.map(lambda leaf: leaf, _shapes(self))
        return jax.eval_shape(int8.quantize, found) if quantized else found

    def hidden(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        """Returns the final norm's output [B, T, D] for `tokens`, `group`, `branch`, `position`, int32 [B, T] each."""
        decoder, config = params["decoder"], self.decoder
        shared, chosen = self._shared(batch)
        embedded = self._round(decoder["embedding"]["weight"][batch["tokens"]])
        x = embedded.astype(self.dtype)  # cast last: gradients add in float32
        if config.embedding_scale != 1.0:
            x = x * jnp.asarray(config.embedding_scale, x.dtype)
        if config.learned_positions:
            row = batch["position"] + config.position_offset
            x = x + self._round(decoder["position_embedding"]["weight"][row]).astype(self.dtype)
        x = constrain(x, ROWS, "sequence", None)

        def layer(x: jax.Array, layer_params: Params, kind: jax.Array | None) -> jax.Array:
            adapters, weights = pytree.split(layer_params, lora.is_adapter)  # adapters stay float32
            block = _bind(lambda: self._block(jax.random.key(0)), self._round(weights))
            lora.attach(block, adapters, self.lora.scale if self.lora else 1.0)
            select = lambda leaf: leaf if kind is None else jax.lax.dynamic_index_in_dim(leaf, kind, keepdims=False)
            return block(x, *jax.tree.map(select, shared))

        if self.remat != "none":
            policy = jax.checkpoint_policies.save_only_these_names(*(() if self.remat == "layer" else (SAVED,)))
            layer = jax.checkpoint(layer, policy=policy)
        step = lambda x, scanned: (layer(x, *scanned), None)
        # On a GPU the loop copies its stacked arrays, a tenth of a train step.
        scan = mesh_platform() != "gpu" if self.scan_layers is None else self.scan_layers
        unroll = 1 if scan else config.num_layers
        x, _ = jax.lax.scan(step, x, (decoder["layers"], chosen), length=config.num_layers, unroll=unroll)
        return _bind(self._norm, self._round(decoder["norm"]))(x)

    def rewards(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        """Returns the rewards float32 [B, R, A] at the tokens `readout_index`, int32 [B, R].

        Values at unused readouts are undefined; mask with `readout_group > 0`.
        """
        return self.head_rewards(params, self.features(params, batch))

    def features(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        """Returns what the head reads of the decoder, [B, R, D] in `dtype`.

        It is the hidden state at each readout; with `mean_readout`, the mean over the `readout_span` tokens of its
        conversation that end there.
        """
        hidden = self.hidden(params, batch)
        if not self.mean_readout:
            return jnp.take_along_axis(hidden, batch["readout_index"][..., None], axis=1)
        group, branch, position = (batch[name][:, None] for name in ("group", "branch", "position"))  # [B, 1, T]
        at = lambda name: jnp.take_along_axis(batch[name], batch["readout_index"], axis=1)[..., None]  # [B, R, 1]
        span = batch["readout_span"][..., None]
        same = (group == at("group")) & ((branch == 0) | (branch == at("branch")))
        inside = same & (position <= at("position")) & (position > at("position") - span)
        weights = inside / span.astype(jnp.float32)  # [B, R, T]
        return jnp.einsum("brt,btd->brd", weights, hidden, precision=jax.lax.Precision.HIGHEST).astype(self.dtype)

    @property
    def features_identity(self) -> tuple[str, ...]:
        """What `features` depends on besides parameters and batch, up to float rounding; it names stored features."""
        mean = ("mean",) if self.mean_readout else ()
        return repr(self.decoder), self.dtype, self.param_dtype, *mean

    def head_rewards(self, params: Params, features: jax.Array) -> jax.Array:
        """Returns the rewards float32 [B, R, A] of `features`; of the parameters, only `head` is used.

        Of several members: their combination.
        """
        rewards = self.member_rewards(params, features)
        return rewards[:, :, 0] if self.head.members == 1 else members.combine(rewards, self.head)

    def rewards_and_std(self, params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        """Returns the rewards and their standard deviations, float32 [B, R, 2 A], of a head that is `uncertain`.

        The standard deviation is that of the members; of a Laplace approximation |Lᵀ x - o| of the features x,
        with its factor L and offset o, times the head's scale.
        """
        features = self.features(params, batch)
        rewards = self.head_rewards(params, features)
        if self.head.members > 1:
            std = members.spread(self.member_rewards(params, features))
        else:
            laplace, exact = params["head"]["laplace"], jax.lax.Precision.HIGHEST
            read = features.astype(jnp.float32)
            projected = jnp.einsum("brd,de->bre", read, laplace["factor"], precision=exact) - laplace["offset"]
            std = jnp.linalg.norm(projected, axis=-1, keepdims=True)
            std = std * jnp.abs(jnp.asarray(self.head.scale or (1.0,), jnp.float32))
        return jnp.concatenate([rewards, std], axis=-1)

    def member_rewards(self, params: Params, features: jax.Array) -> jax.Array:
        """Returns the rewards of each of K members, float32 [B, R, K, A], of `features`."""
        read, kernel = features.astype(jnp.float32), params["head"]["kernel"]
        if self.head.hidden:
            hidden = params["head"]["hidden"]
            read = jnp.einsum("brd,dh->brh", read, hidden["kernel"], precision=jax.lax.Precision.HIGHEST)
            read = jax.nn.relu(read + hidden["bias"])
        # Highest precision: on TPU the default would round the float32 operands to bfloat16.
        rewards = jnp.einsum("brd,da->bra", read, kernel, precision=jax.lax.Precision.HIGHEST)
        rewards = rewards.reshape(*rewards.shape[:2], self.head.members, -1)
        if self.head.scale:
            rewards = rewards * jnp.asarray(self.head.scale, jnp.float32)
        return rewards + jnp.asarray(self.head.shift, jnp.float32) if self.head.shift else rewards

    def init_head(self, key: jax.Array) -> Params:
        """Returns random parameters of the head."""
        size, hidden = self.decoder.hidden_size, self.head.hidden
        outputs = self.head.members * len(self.head.attributes)
        kernel = jax.random.normal(key, (hidden or size, outputs), jnp.float32)
        params: Params = {"kernel": self.head.init * kernel}
        if hidden:
            first = size**-0.5 * jax.random.normal(jax.random.fold_in(key, 1), (size, hidden), jnp.float32)
            params["hidden"] = {"kernel": first, "bias": jnp.zeros(hidden, jnp.float32)}
        if self.head.laplace:
            zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
            params["laplace"] = {"factor": zeros(size, size), "offset": zeros(size)}
        return params

    def _shared(self, batch: dict[str, jax.Array]) -> tuple[tuple[Mask, Rope], jax.Array | None]:
        """Returns what layers share, mask and rotation, and which of them each layer uses, int32 [L].

        Of several kinds of layers, the arrays are stacked, so that one loop runs all layers: slices of the stacked
        parameters for a loop over a pattern of layers would be copies of them. Of one kind, the second is None.
        """
        row_length, position = batch["tokens"].shape[1], batch["position"]
        kernel, kinds = choose_kernel(self.attention, row_length), self.decoder.layer_kinds(row_length)
        distinct, window = sorted(set(kinds), key=str), max(kind.window for kind in kinds)
        rotary = any(kind.rotary for kind in kinds)

        def share(kind: LayerKind) -> tuple[Mask, Rope]:
            # Between tokens at the same position, a window hides nothing.
            seen_at = position if kind.window == window else jnp.zeros_like(position)
            mask = make_mask(batch["group"], batch["branch"], seen_at, kernel, window)
            return mask, self._rope(kind, position) if rotary else None

        found = [share(kind) for kind in distinct]
        if len(found) == 1:
            return found[0], None
        chosen = jnp.array([distinct.index(kind) for kind in kinds], jnp.int32)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found), chosen

    def _rope(self, kind: LayerKind, position: jax.Array) -> Rope:
        """Returns cos and sin of the rotation in layers of a kind; without rotation, by angles of 0."""
        config, own = self.decoder, kind.rope_theta
        theta, scaling = (own, None) if own else (config.rope_theta, config.rope_scaling)
        if not kind.rotary:
            position, scaling = jnp.zeros_like(position), None
        length = config.rope_length or config.max_positions
        return rope_tables(position, *rope_frequencies(config.rotary_dim or config.head_dim, theta, scaling, length))

    def _round(self, params: Any) -> Any:
        """Returns parameters rounded to `param_dtype`, in their own dtype; gradients pass unchanged."""
        stored = jnp.finfo(self.param_dtype)

        def round_one(path: str, x: jax.Array) -> jax.Array:
            if int8.is_part(path):
                return x
            if stored.bits >= min(jnp.finfo(self.dtype).bits, jnp.finfo(x.dtype).bits):
                return x  # every use casts it to `dtype`, which rounds as much
            # XLA would remove a cast to bfloat16 and back.
            rounded = jax.lax.reduce_precision(x, stored.nexp, stored.nmant)
            return x + jax.lax.stop_gradient(rounded - x)  # exactly `rounded`

        return pytree.map_with_path(round_one, params)

    def _block(self, key: jax.Array) -> Block:
        mlp = RoutedMLP if self.decoder.num_experts else MLP
        return Block(self.decoder, jnp.dtype(self.param_dtype), nnx.Rngs(key), mlp)

    def _norm(self) -> Norm:
        return make_norm(self.decoder.hidden_size, self.decoder, jnp.dtype(self.param_dtype))


def _parameters(module: nnx.Module) -> Params:
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def _bind(make_module: Callable[[], Any], params: Params) -> Any:
    """Returns the module of `make_module` with the parameters `params`; its own are never computed."""
    graph = nnx.graphdef(nnx.eval_shape(make_module))
    return nnx.merge(graph, nnx.State(jax.tree.map(nnx.Param, params, is_leaf=int8.is_matrix)))


@functools.lru_cache(maxsize=64)
def _shapes(model: RewardModel) -> Params:
    """Returns `RewardModel.shapes`; tracing takes a tenth of a second, and a program asks many times."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0)))  # the key is traced too: devices may not be there
