"""Hyperparameters of the decoder and of the reward head."""

import dataclasses
from typing import Any

from rmjax.core.errors import InputError
from rmjax.models.rope import LongRopeScaling, RopeScaling

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2")  # by transformers' names; see `layers`


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What may differ between the layers of a decoder."""

    window: int = 0  # a token attends to those less than `window` positions before it, itself included; 0: to all
    rotary: bool = True  # False: queries and keys are not rotated (NoPE)
    rope_theta: float = 0.0  # of this kind alone, without scaling; 0: the decoder's theta and scaling


@dataclasses.dataclass(frozen=True)
class LayerGroup:
    """Consecutive layers: `kinds`, `repeats` times."""

    start: int  # index of the first layer
    kinds: tuple[LayerKind, ...]
    repeats: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Hyperparameters of a decoder-only transformer; axis letters as in `rmjax.models.layers`.

    The defaults of the features after `initializer_range` turn them off.
    """

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int  # F
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # H
    head_dim: int  # P
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    attention_bias: bool
    mlp_bias: bool
    max_positions: int  # maximum length of a conversation, in tokens
    initializer_range: float  # standard deviation of randomly initialized matrices
    kinds: tuple[LayerKind, ...] = (LayerKind(),)  # layer i is of kind i modulo their number
    activation: str = "silu"  # of the MLP; one of `ACTIVATIONS`
    mlp_gated: bool = True  # False: down(activation(up(x))), without a gate
    output_bias: bool | None = None  # of the attention's output matrix; None: as `attention_bias`
    qk_norm: str = ""  # norm of queries and keys before the rotation: of each `head`, or over `all` of them
    pre_norms: bool = True  # norms of the inputs of attention and MLP
    post_norms: bool = False  # norms of their outputs, before the sum
    norm_offset: float = 0.0  # norms multiply by offset + scale
    norm_float32: bool = False  # norms round to the activations' dtype after the product with the scale, not before it
    attention_scale: float = 0.0  # of the products of queries and keys; 0: 1 / sqrt(P)
    attention_softcap: float = 0.0  # c: a score s becomes c · tanh(s / c); 0: it stays
    embedding_scale: float = 1.0  # of the embeddings; rounded to the activations' dtype
    residual_scale: float = 1.0  # of the outputs of attention and MLP
    rotary_dim: int = 0  # R, the number of leading dimensions of a head that are rotated; 0: P
    rotary_interleaved: bool = False  # pairs of adjacent dimensions are rotated; otherwise the two halves
    rope_length: int = 0  # maximum length of a conversation, by which LongRoPE is fixed; 0: `max_positions`

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"num_heads is {self.num_heads}; expected a multiple of num_kv_heads, {self.num_kv_heads}")
        if self.head_dim % 2:
            raise InputError(f"head_dim is {self.head_dim}; rotary position embeddings need an even number")
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise InputError(f"rotary_dim is {self.rotary_dim}; expected an even number up to {self.head_dim}")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"the activation is {self.activation!r}; implemented: {', '.join(ACTIVATIONS)}")
        if isinstance(scaling := self.rope_scaling, LongRopeScaling):
            pairs = (self.rotary_dim or self.head_dim) // 2
            for name in ("short_factor", "long_factor"):
                if len(getattr(scaling, name)) != pairs:
                    found = len(getattr(scaling, name))
                    raise InputError(f"longrope: {name} has {found} numbers; expected {pairs}, one per rotated pair")

    def kind(self, layer: int) -> LayerKind:
        """Returns the kind of a layer."""
        return self.kinds[layer % len(self.kinds)]

    def layer_groups(self) -> list[LayerGroup]:
        """Returns the layers in groups that repeat: from the first layer on, each the longest possible."""
        kinds, groups, start = [self.kind(i) for i in range(self.num_layers)], [], 0
        while start < self.num_layers:
            found = LayerGroup(start, (kinds[start],), 1)
            for period in range(1, (self.num_layers - start) // 2 + 1):
                repeats = 1
                while kinds[start : start + period] == kinds[(at := start + repeats * period) : at + period]:
                    repeats += 1
                if repeats > 1 and repeats * period > found.repeats * len(found.kinds):
                    found = LayerGroup(start, tuple(kinds[start : start + period]), repeats)
            groups.append(found)
            start += found.repeats * len(found.kinds)
        return groups

    def for_length(self, max_length: int) -> "DecoderConfig":
        """Returns the config of a model of conversations of up to `max_length` tokens, which matters to LongRoPE."""
        if not isinstance(self.rope_scaling, LongRopeScaling):
            return self
        return dataclasses.replace(self, rope_length=max_length)


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The reward head: a float32 linear map without bias from the final norm's output to one value per attribute."""

    attributes: tuple[str, ...] = ("reward",)  # names of the A attributes
    init: float = 0.0  # standard deviation of a randomly initialized head
    # The linear map's output is multiplied by `scale` and shifted by `shift`, for standardized targets or rewards.
    scale: tuple[float, ...] = ()  # one per attribute; (): 1 each
    shift: tuple[float, ...] = ()  # one per attribute; (): 0 each
    merge: tuple[float, ...] = ()  # weights of the attributes in the single ranking reward; (): their mean

    def to_json(self) -> dict[str, Any]:
        """Returns the head's values for rmjax.json and head.json; `from_json` reads them."""
        return {name: list(getattr(self, name)) for name in ("attributes", "scale", "shift", "merge")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "HeadConfig":
        """Returns the head of the values that `to_json` returned."""
        scale, shift, merge = (tuple(values.get(name) or ()) for name in ("scale", "shift", "merge"))
        return cls(tuple(values["attributes"]), scale=scale, shift=shift, merge=merge)
