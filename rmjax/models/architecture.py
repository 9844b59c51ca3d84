"""Hyperparameters of the decoder and of the reward head."""

import dataclasses
from typing import Any

from rmjax.core.errors import InputError
from rmjax.models.rope import DynamicScaling, LongRopeScaling, RopeScaling

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2")  # by transformers' names; see `layers`


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What may differ between the layers of a decoder."""

    window: int = 0  # a token attends to those less than `window` positions before it, itself included; 0: to all
    rotary: bool = True  # False: queries and keys are not rotated (NoPE)
    rope_theta: float = 0.0  # of this kind alone, without scaling; 0: the decoder's theta and scaling


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
    parallel: str = ""  # attention and MLP both read the block's input, through "one" norm or "two"; "": one by one
    layer_norm: bool = False  # norms subtract the mean (LayerNorm); False: they do not (RMSNorm)
    norm_bias: bool = False  # of LayerNorms
    norm_offset: float = 0.0  # norms multiply by offset + scale
    norm_float32: bool = False  # norms round to the activations' dtype after the product with the scale, not before it
    attention_scale: float = 0.0  # of the products of queries and keys; 0: 1 / sqrt(P)
    attention_softcap: float = 0.0  # c: a score s becomes c · tanh(s / c); 0: it stays
    embedding_scale: float = 1.0  # of the embeddings; rounded to the activations' dtype
    residual_scale: float = 1.0  # of the outputs of attention and MLP
    rotary_dim: int = 0  # R, the number of leading dimensions of a head that are rotated; 0: P
    rotary_interleaved: bool = False  # pairs of adjacent dimensions are rotated; otherwise the two halves
    rope_length: int = 0  # maximum length of a conversation, by which LongRoPE is fixed; 0: `max_positions`
    learned_positions: bool = False  # an embedding of the position in the conversation is added to the token's
    position_offset: int = 0  # its row for the first token; the rows before it are not used
    num_experts: int = 0  # E: a router chooses among so many MLPs for each token; 0: one MLP, without a router
    experts_per_token: int = 0  # K
    expert_size: int = 0  # F of an expert; 0: `intermediate_size`
    normalize_experts: bool = False  # the weights of a token's experts are divided by their sum
    shared_expert_size: int = 0  # F of an MLP beside the experts, which computes all tokens; 0: none

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"num_heads is {self.num_heads}; expected a multiple of num_kv_heads, {self.num_kv_heads}")
        if self.head_dim % 2:
            raise InputError(f"head_dim is {self.head_dim}; rotary position embeddings need an even number")
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise InputError(f"rotary_dim is {self.rotary_dim}; expected an even number up to {self.head_dim}")
        if self.num_experts and not 1 <= self.experts_per_token <= self.num_experts:
            raise InputError(
                f"experts_per_token is {self.experts_per_token}; expected a number from 1 to {self.num_experts}, the "
                "number of experts"
            )
        if len(windows := {kind.window for kind in self.kinds if kind.window}) > 1:
            raise InputError(f"layers have windows of {sorted(windows)} tokens; expected one size beside none")
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

    def layer_kinds(self, row_length: int) -> list[LayerKind]:
        """Returns the kind of each layer in rows of so many tokens, without windows that hide nothing there."""
        kinds = list(map(self.kind, range(self.num_layers)))
        return [dataclasses.replace(kind, window=0) if kind.window >= row_length else kind for kind in kinds]

    def for_length(self, max_length: int) -> "DecoderConfig":
        """Returns the config of a model of conversations of up to `max_length` tokens, which matters to LongRoPE."""
        if not isinstance(self.rope_scaling, LongRopeScaling):
            return self
        return dataclasses.replace(self, rope_length=max_length)

    def describe_scaling(self) -> str:
        """Returns what is fixed of a rotary scaling that depends on a batch in transformers; empty for others.

        >>> describe = lambda scaling, **more: DecoderConfig(
        ...     9, 8, 8, 1, 1, 1, 8, 1e-5, 1e4, scaling, False, False, 64, 0.2, **more).describe_scaling()
        >>> describe(DynamicScaling(2.0))
        'rotary scaling dynamic: none, since conversations have at most 64 tokens (max_position_embeddings)'
        >>> long = LongRopeScaling((1.0,) * 4, (2.0,) * 4, 16, 4.0)
        >>> describe(long)
        'rotary scaling longrope: long_factor in every conversation, since they may have 64 tokens (more than 16)'
        >>> describe(long, rope_length=16)
        'rotary scaling longrope: short_factor in every conversation, since they have at most 16 tokens (of 16)'
        """
        if isinstance(self.rope_scaling, DynamicScaling):
            limit = f"conversations have at most {self.max_positions} tokens (max_position_embeddings)"
            return f"rotary scaling dynamic: none, since {limit}"
        if not isinstance(scaling := self.rope_scaling, LongRopeScaling):
            return ""
        length, original = self.rope_length or self.max_positions, scaling.original_max_position_embeddings
        if length > original:
            reason = f"long_factor in every conversation, since they may have {length} tokens (more than {original})"
        else:
            reason = f"short_factor in every conversation, since they have at most {length} tokens (of {original})"
        return f"rotary scaling longrope: {reason}"


OPTIONAL_HEAD_KEYS = ("hidden", "members", "combination", "beta", "laplace")  # of `HeadConfig.to_json`


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The reward head: a float32 linear map without bias from the final norm's output to one value per attribute.

    With a hidden layer it is linear · ReLU(hidden · x + bias), as in Qwen2.5-Math's reward models.
    """

    attributes: tuple[str, ...] = ("reward",)  # names of the A attributes
    init: float = 0.0  # standard deviation of a randomly initialized head
    # The linear map's output is multiplied by `scale` and shifted by `shift`, for standardized targets or rewards.
    scale: tuple[float, ...] = ()  # one per attribute; (): 1 each
    shift: tuple[float, ...] = ()  # one per attribute; (): 0 each
    merge: tuple[float, ...] = ()  # weights of the attributes in the single ranking reward; (): their mean
    hidden: int = 0  # size of the hidden layer; 0: none
    members: int = 1  # K linear maps, whose rewards are combined; see `rmjax.models.members`
    combination: str = "mean"  # of the members' rewards; one of `members.COMBINATIONS`
    beta: float = 1.0  # of the combinations mean_std and quantile
    laplace: bool = False  # the parameters hold a factor of the posterior covariance of the linear map

    @property
    def uncertain(self) -> bool:
        """Whether a reward has a standard deviation."""
        return self.members > 1 or self.laplace

    @property
    def merge_weights(self) -> tuple[float, ...]:
        """The weights of the attributes in the single ranking reward, A numbers."""
        return self.merge or (1 / len(self.attributes),) * len(self.attributes)

    def to_json(self) -> dict[str, Any]:
        """Returns the head's values for rmjax.json and head.json; `from_json` reads them."""
        values = {name: list(getattr(self, name)) for name in ("attributes", "scale", "shift", "merge")}
        several = ("members", "combination", "beta") if self.members > 1 else ()
        names = [*(["hidden"] if self.hidden else []), *several, *(["laplace"] if self.laplace else [])]
        return values | {name: getattr(self, name) for name in names}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "HeadConfig":
        """Returns the head of the values that `to_json` returned."""
        scale, shift, merge = (tuple(values.get(name) or ()) for name in ("scale", "shift", "merge"))
        others = {name: values[name] for name in OPTIONAL_HEAD_KEYS if name in values}
        return cls(tuple(values["attributes"]), scale=scale, shift=shift, merge=merge, **others)
